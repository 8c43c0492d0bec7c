"""Metric names, metrics, logs and traces. Nothing here knows the front end, the worker or Redis."""
