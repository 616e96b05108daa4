"""Fit scaling laws to the results of a sweep or to any table, and write plots and reports."""
