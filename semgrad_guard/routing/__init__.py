"""Confidence to decision: the ladder of routes, and the routes that need no LangChain."""
