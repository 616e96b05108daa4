"""The folders of a home: run directories, locks, settings, job logs and the code's version."""
