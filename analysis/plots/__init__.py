"""The figures of laws, compute, diagnostics and families."""
