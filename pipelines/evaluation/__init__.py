"""Scores of finished models: likelihood, FID and related scores, throughput."""
