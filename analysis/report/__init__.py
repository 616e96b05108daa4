"""The report: texts, tables and figures on HTML pages."""
