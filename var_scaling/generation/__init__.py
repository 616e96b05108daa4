"""Samples and edits: each depends only on the model, settings, seed, class and index."""
