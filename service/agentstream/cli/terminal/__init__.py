"""Writing to a terminal and reading its signals. Nothing here asks a front end or Redis."""
