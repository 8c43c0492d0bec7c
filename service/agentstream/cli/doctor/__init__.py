"""The checks of ``agentstream doctor``. Code that prints their results belongs in the command."""
