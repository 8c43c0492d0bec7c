"""The tools of the built-in agent, including those of MCP servers; no module here calls a model or uses Redis."""
