"""Queries about a deployment for operators and commands; nothing here serves a client's request."""
