"""A small chat model of our own that ships with the package: its world, its training, its weights and its profile."""

from semgrad_guard.demo.embedded import corpus, embedded_model, embedded_profile

__all__ = ["corpus", "embedded_model", "embedded_profile"]
