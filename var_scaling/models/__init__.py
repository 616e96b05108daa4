"""The model families that are compared (VAR, AR, DiT): networks, losses, samplers and costs."""
