"""The commands that talk to a deployment and look at it.

Each is a module with one click command; ``agentstream.__main__`` gathers them. They end with the codes of ``exits``.
"""
