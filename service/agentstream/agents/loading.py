"""Imports the user's agent by its name, and describes it."""

import contextlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from typing import cast

from agentstream.agents.contract import Agent
from agentstream.errors import StartupError


def load_agent(spec: str) -> Agent:
    """Import and return the agent named ``package.module:attribute``.

    The working directory is searched first. Raises StartupError if the module cannot be imported, has no such
    attribute, or the attribute is a class or cannot be called.
    """
    module_name, _, attribute = spec.partition(":")
    here = os.getcwd()  # noqa: PTH109 -- sys.path holds strings
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: object = importlib.import_module(module_name)
    except (Exception, SystemExit) as exc:  # the user's module may raise anything
        message = f"agent {spec!r}: importing {module_name} failed: {type(exc).__name__}: {exc} (searched {here} first)"
        raise StartupError(message + _new_name_hint(exc, module_name)) from exc
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as exc:
            message = f"agent {spec!r}: {module_name} has no attribute {attribute!r}"
            raise StartupError(message) from exc
    if not callable(found) or inspect.isclass(found):
        message = f"agent {spec!r} is a {type(found).__name__}; expected a function or object that takes a Run"
        raise StartupError(message)
    return cast("Agent", found)


def _new_name_hint(exc: BaseException, module_name: str) -> str:
    """Return a hint with the new name if the failed import uses this package's old name, ``service``; else ""."""
    if not isinstance(exc, ModuleNotFoundError) or exc.name is None:
        return ""
    missing = module_name if exc.name == "service" and module_name.startswith("service.") else exc.name
    new_name = re.sub(r"^service(?=\.|$)", "agentstream", missing)
    with contextlib.suppress(ImportError):
        if new_name != missing and importlib.util.find_spec(new_name) is not None:
            return f"; the package is called agentstream now: write {new_name} instead of {missing}"
    return ""


def name_of(agent: Agent) -> str:
    """Return the agent's ``name``, or else the name of its function or class."""
    named = (getattr(agent, attribute, None) for attribute in ("name", "__name__"))
    return str(next(filter(None, named), type(agent).__name__))


def is_async(agent: Agent) -> bool:
    """Return whether the agent runs on the event loop: it is ``async``. A plain agent runs in a thread."""
    return inspect.iscoroutinefunction(agent) or inspect.iscoroutinefunction(getattr(agent, "__call__", None))  # noqa: B004
