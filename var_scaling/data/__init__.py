"""Images: made here or read from disk, as uint8 arrays, addressed by index."""
