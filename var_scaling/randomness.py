"""Random seeds as a function of (seed, purpose, indices): a resume needs no generator state."""

import hashlib


def seed_for(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed that differs with each argument, for a NumPy or torch generator."""
    # Not hash(): Python's hash of a text differs from process to process. >> 1: the seed fits a
    # signed 64-bit integer.
    text = ":".join(map(str, (seed, purpose, *indices)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
