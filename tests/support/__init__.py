"""Tiny random models, a tokenizer made in memory, text, and the one table of tolerances."""
