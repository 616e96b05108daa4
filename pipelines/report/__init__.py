"""Laws fitted, drawn and reported from the results of a sweep or from any table."""
