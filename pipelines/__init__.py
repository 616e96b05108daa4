"""Where and when: stages in their folders, run by Ray, mirrored into MLflow, driven by a command line."""
