"""A program in another language: the one beside this file, run by Node."""

from pathlib import Path

from agentstream.adapters.command import CommandAgent

agent = CommandAgent("node", str(Path(__file__).with_name("command_agent.mjs")))
