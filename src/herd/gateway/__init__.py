"""Client-facing HTTP: a module per dialect, errors, and the relay, which is the hot path."""
