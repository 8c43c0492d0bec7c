"""Language models behind one interface: an OpenAI client and a demo engine; no module here uses agents or Redis."""
