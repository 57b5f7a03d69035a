"""Outcomes on disk, through one writer thread."""
