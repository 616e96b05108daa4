"""Copy the results of a home to MLflow, and run its server."""
