"""How good a model is, as functions of model and data: the same number twice."""
