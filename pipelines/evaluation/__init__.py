"""Scores of finished models: likelihood, FID and its kin, throughput."""
