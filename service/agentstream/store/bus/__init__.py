"""The event bus: publishers append and publish the events of runs, feeds read them; nothing here knows jobs."""
