"""`make demo`: a small fleet on this machine, and questions that show who answers them and why."""
