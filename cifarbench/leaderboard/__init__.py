"""Runs beside each other: found on disk, grouped over their seeds, ranked and compared."""
