"""Compute frontiers, IsoFLOP parabolas and the optimal allocation of compute."""
