"""What we want to know: one small file a sweep, each with a `sweep` and no effects."""
