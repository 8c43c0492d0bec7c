"""The worker: it claims jobs, keeps their leases and runs agents. Nothing here serves clients."""
