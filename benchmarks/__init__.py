"""Measurements of what Herd itself costs; run by `make bench`."""
