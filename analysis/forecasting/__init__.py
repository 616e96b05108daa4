"""Predictions of larger runs, sealed before they run, and which runs to make next."""
