"""Import and export published checkpoints, and load finished models."""
