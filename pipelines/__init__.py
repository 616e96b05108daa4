"""Where and when: stages in folders, run by Ray, mirrored into MLflow, driven by verbs."""
