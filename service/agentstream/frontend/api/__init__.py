"""The HTTP APIs: their routes and the validation of requests. Code that answers with a run belongs in ``runs``."""
