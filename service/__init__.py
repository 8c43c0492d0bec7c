"""agentstream: an OpenAI-compatible streaming front end for agents that run elsewhere."""

__version__ = "0.1.0"
