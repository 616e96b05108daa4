"""How certain a law is: bootstrap, intervals, coverage."""
