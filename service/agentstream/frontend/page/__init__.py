"""The playground page: its routes, and its files in ``static``. Nothing that an API client needs belongs here."""
