"""L0: the words every layer speaks. No I/O here."""
