"""Sets of samples as resumable work on disk."""
