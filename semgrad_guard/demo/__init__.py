"""A small chat model of our own that ships with the package: its weights, its profile, and sentences to try it on."""

from semgrad_guard.demo.embedded import corpus, embedded_model, embedded_profile, labelled_questions

__all__ = ["corpus", "embedded_model", "embedded_profile", "labelled_questions"]
