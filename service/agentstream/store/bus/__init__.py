"""The event bus: publishers append and publish the events of runs, feeds read them. Nothing here knows jobs."""
