"""Tools for developing Herd; not part of the package."""
