"""Questions that operators and command lines ask of Redis. Nothing here is on the way of a request."""
