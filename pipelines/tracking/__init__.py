"""The mirror of a home in MLflow, and its server."""
