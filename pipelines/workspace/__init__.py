"""What lies in a home and beside it: run directories, locks, settings, the code's version."""
