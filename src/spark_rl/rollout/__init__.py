"""Sampling completions: the `Engine` protocol and its implementations, one file an engine."""
