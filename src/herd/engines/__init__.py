"""One adapter per engine: detect it and read what it has."""
