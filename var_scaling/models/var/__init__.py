"""VAR: visual autoregressive modelling by next-scale prediction (arXiv 2404.02905)."""
