"""Comparisons of groups of runs: compute multipliers, joint fits, the laws of the VAR paper."""
