"""The Responses API of a run: its output items, the response object, and the stream of typed events."""
