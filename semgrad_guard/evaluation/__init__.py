"""Measuring the package against others: what a score costs."""
