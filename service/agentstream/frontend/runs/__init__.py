"""Answers a request with a run: creates it or attaches to it, and streams, collects or cancels it.

Code that parses requests does not belong here.
"""
