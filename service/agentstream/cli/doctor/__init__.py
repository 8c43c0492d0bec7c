"""The checks that ``agentstream doctor`` makes. How they are printed belongs to its command."""
