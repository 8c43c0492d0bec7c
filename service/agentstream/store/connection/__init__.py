"""The connection to Redis: the URL, the socket, and the link that a process shares; nothing here knows runs or jobs."""
