"""Composition: wires a router process or a node process, and owns start and stop."""
