"""Two groups of runs compared: compute multipliers, joint fits, the paper's own laws."""
