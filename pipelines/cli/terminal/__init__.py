"""The output of the commands: tables, progress bars, warnings."""
