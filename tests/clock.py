"""A clock that stands still until it is moved."""

from datetime import UTC, datetime, timedelta


class Clock:
    def __init__(self, *, hour=0):
        self.now = datetime(2026, 1, 1, hour, tzinfo=UTC)

    def __call__(self):
        return self.now

    def on(self, seconds):
        self.now += timedelta(seconds=seconds)
