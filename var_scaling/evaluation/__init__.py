"""Scores of models: deterministic functions of a model and data."""
