"""L3: the process that runs agents."""
