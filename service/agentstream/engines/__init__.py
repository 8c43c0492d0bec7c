"""Engines: one interface to language models, with an OpenAI client and a demo; no agents, tools or Redis here."""
