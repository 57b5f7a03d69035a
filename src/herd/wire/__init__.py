"""Pure, incremental: bytes to types for each dialect, translation, metering, agent messages."""
