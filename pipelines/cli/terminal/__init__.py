"""What the commands print: tables, bars, warnings."""
