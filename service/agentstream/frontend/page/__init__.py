"""The playground: its routes, and in ``static`` its files. Nothing here is needed by an API client."""
