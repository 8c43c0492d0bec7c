"""L3: the process that talks HTTP to clients. It meets the worker only through L0-L2."""
