"""The commands, one module each. Code that several commands share belongs in the parent folder."""
