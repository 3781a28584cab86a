"""The HTTP service: OpenAI-compatible completions that carry their confidence. Needs the extra `server`."""
