"""The sweeps that we run: each file defines one `sweep`; importing it has no effects."""
