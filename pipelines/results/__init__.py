"""The results tables of a sweep, and the samples, edits and measurements of each model."""
