"""Output to a terminal, and ctrl-C. Commands do not belong here, nor does access to Redis."""
