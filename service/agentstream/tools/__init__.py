"""Tools of the built-in orchestrator."""
