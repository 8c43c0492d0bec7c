"""L2: Redis. The bus (events of runs), the queue (jobs), and the one shared connection under both."""
