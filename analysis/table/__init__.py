"""A run table: its columns, reading and checking it, also from MLflow."""
