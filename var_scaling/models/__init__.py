"""The generators that are compared: what they compute, not how they are trained."""
