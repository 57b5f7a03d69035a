"""The agent: this machine's report, its engines, and the guarded door to them."""
