"""The report: texts, tables and figures on one page."""
