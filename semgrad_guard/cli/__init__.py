"""The command line, `semgrad-guard`: what it answers, what it calibrates, what it measures."""

from semgrad_guard.cli import answers, measurements, profiles, review, serve
from semgrad_guard.cli.app import app

__all__ = ["answers", "app", "measurements", "profiles", "review", "serve"]
