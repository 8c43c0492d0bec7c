"""Starting and stopping processes: the supervisor, child processes, the shared port and the embedded broker.

Nothing here knows HTTP handlers or runs.
"""
