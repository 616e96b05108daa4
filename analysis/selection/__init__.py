"""Which law, which counting, which points: held-out error, influence, verdict."""
