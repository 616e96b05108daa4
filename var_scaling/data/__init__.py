"""Images, generated or read from disk: uint8 arrays, addressed by row."""
