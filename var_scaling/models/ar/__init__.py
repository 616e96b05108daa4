"""The raster autoregressive baseline: next-token prediction over one map of tokens."""
