"""One connection to Redis: the URL, the socket, and the link that a process shares.

Nothing here knows runs or jobs.
"""
