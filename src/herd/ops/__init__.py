"""Settings, logging, clock."""
