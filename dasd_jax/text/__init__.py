"""Tokenizers behind one protocol, chat templates, student and privileged-teacher prompts."""
