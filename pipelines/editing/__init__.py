"""Edits of pictures as resumable work on disk."""
