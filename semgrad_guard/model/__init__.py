"""Prompt to generation: the chat template, `model.generate`, and the replay that scores are computed on."""
