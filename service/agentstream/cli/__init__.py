"""The commands that use and inspect a deployment. Starting processes does not belong here.

Each module of ``commands`` holds one click command. ``agentstream.__main__`` collects them. ``exits`` has their
exit codes.
"""
