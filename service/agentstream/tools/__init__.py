"""The tools of the built-in orchestrator and the clients of MCP servers; no model and no Redis here."""
