"""Emulated engines."""
