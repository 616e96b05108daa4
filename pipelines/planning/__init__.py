"""Before a run: the cost of a sweep, forecasts of its results, and which runs to make next."""
