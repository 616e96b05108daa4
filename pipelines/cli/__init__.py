"""The commands. No logic: they read options, call the packages below and print."""
