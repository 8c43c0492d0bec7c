"""The commands, one module each. What several commands share lives beside this folder."""
