"""Predictions of larger runs, saved with a checksum before training; planning of the next runs."""
