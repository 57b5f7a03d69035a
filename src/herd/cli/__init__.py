"""The commands `herd` and `herd-node`: thin over the rest."""
