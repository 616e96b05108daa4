"""The command line: commands that read options, call the packages below and print results."""
