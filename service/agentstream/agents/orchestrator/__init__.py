"""The built-in agent: asks a model, runs its tools and continues after the loss of a worker; no access to the store."""

from agentstream.agents.orchestrator.agent import Orchestrator

__all__ = ["Orchestrator"]
