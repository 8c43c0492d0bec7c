"""The wire models that all layers share; code that does I/O does not belong here."""
