"""Stages brought to their end: here by Ray, on a cluster by Slurm; their state; their control."""
