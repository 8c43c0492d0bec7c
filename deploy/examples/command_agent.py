"""A JavaScript program as an agent: command_agent.mjs in this folder. It needs Node."""

from pathlib import Path

from agentstream.adapters.command import CommandAgent

agent = CommandAgent("node", str(Path(__file__).with_name("command_agent.mjs")), resumable=True)
