"""How a request is answered with a run: admitted, attached to, streamed, collected or cancelled.

Nothing here parses a request.
"""
