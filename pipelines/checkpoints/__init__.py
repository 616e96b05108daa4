"""Weights in and out: published checkpoints, and finished models loaded for use."""
