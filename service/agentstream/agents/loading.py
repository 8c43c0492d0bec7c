"""Finding the user's agent by name."""

import importlib
import inspect
import os
import sys
from typing import cast

from agentstream.agents.contract import Agent
from agentstream.errors import StartupError


def load_agent(spec: str) -> Agent:
    """Return the agent named ``package.module:attribute``, importable from the working directory.

    Raises StartupError saying what could not be found, and why.
    """
    module_name, _, attribute = spec.partition(":")
    here = os.getcwd()  # noqa: PTH109 -- sys.path holds strings
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: object = importlib.import_module(module_name)
    except (Exception, SystemExit) as exc:  # whatever the user's module raises while it is imported
        message = (
            f"agent {spec!r}: importing {module_name} failed: {type(exc).__name__}: {exc} (looked in {here} first)"
        )
        raise StartupError(message) from exc
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as exc:
            message = f"agent {spec!r}: {module_name} has no attribute {attribute!r}"
            raise StartupError(message) from exc
    if not callable(found) or inspect.isclass(found):
        message = f"agent {spec!r} is a {type(found).__name__}; expected a function (or an instance) taking a Run"
        raise StartupError(message)
    return cast("Agent", found)


def name_of(agent: Agent) -> str:
    """Return what the agent is called: its ``name``, else the function's or the class's."""
    named = (getattr(agent, attribute, None) for attribute in ("name", "__name__"))
    return str(next(filter(None, named), type(agent).__name__))


def is_async(agent: Agent) -> bool:
    """Return whether the agent runs on the event loop; a plain function runs in a thread."""
    return inspect.iscoroutinefunction(agent) or inspect.iscoroutinefunction(getattr(agent, "__call__", None))  # noqa: B004
