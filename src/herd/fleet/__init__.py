"""The I/O around the scheduler: driver, discovery, links, probing of URL nodes."""
