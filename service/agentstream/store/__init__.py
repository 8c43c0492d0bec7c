"""Redis: the event bus, the job queue, and the connection that both share; nothing here knows HTTP or agents."""
