"""From the disk to the results table, and what was made of each model."""
