"""Sample sets: draw, resume and complete them on disk."""
