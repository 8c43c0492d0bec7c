"""Imports the user's agents, and other objects of the user's modules, by their names."""

import contextlib
import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Final

from agentstream.agents.contract import Agent
from agentstream.agents.import_errors import explain_import_error
from agentstream.agents.lifespan import ManagedAgent, is_context_manager
from agentstream.agents.shapes import as_agent, takes_nothing
from agentstream.errors import StartupError, explain_no_access

_MAX_LISTED: Final = 5


def load_agent(spec: str) -> Agent:
    """Import and return the agent named ``package.module:attribute``.

    It is a ManagedAgent if it must be started. Raises StartupError if the object cannot be imported, or if it cannot be
    an agent.
    """
    found = load_object("agent", spec)
    if is_context_manager(found) or takes_nothing(found):
        return ManagedAgent(f"agent {spec!r}", found)
    try:
        return as_agent(found)
    except TypeError as exc:
        message = f"agent {spec!r} {exc}"
        raise StartupError(message) from exc


def load_object(role: str, spec: str) -> object:
    """Import and return the object named ``package.module:attribute``. ``role`` names it in errors, such as "agent".

    The working directory is searched first. Raises StartupError if the module cannot be imported or has no such
    attribute.
    """
    module_name, _, attribute = spec.partition(":")
    here = os.getcwd()  # noqa: PTH109 -- sys.path holds strings
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: object = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # the user's module may raise anything
        reason = explain_import_error(exc, module_name)
        message = f"{role} {spec!r}: importing {module_name} failed: {reason} (searched {here} first)"
        raise StartupError(message + _hint(exc, module_name, here)) from exc
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as exc:
            message = f"{role} {spec!r}: {module_name} has no attribute {attribute!r}"
            raise StartupError(message) from exc
        except Exception as exc:  # from a property, or from __getattr__ of the module
            message = f"{role} {spec!r}: reading {attribute!r} failed: {explain_import_error(exc, module_name)}"
            raise StartupError(message) from exc
    return found


def _hint(exc: BaseException, module_name: str, here: str) -> str:
    """Return what helps against a frequent error of an agent's module; else ""."""
    if isinstance(exc, RuntimeError) and "no running event loop" in str(exc):
        return (
            "; the module is imported before the event loop runs: create what needs the loop inside the agent, or once "
            "per worker in an async context manager"
        )
    if isinstance(exc, OSError) and isinstance(exc.filename, str):
        refused = explain_no_access(exc.filename)
        return f"; {refused}" if refused else ""
    if isinstance(exc, ModuleNotFoundError) and exc.name is not None and f"{module_name}.".startswith(f"{exc.name}."):
        return _new_name_hint(exc, module_name) or _missing_hint(exc.name, Path(here))
    return _new_name_hint(exc, module_name)


def _missing_hint(name: str, here: Path) -> str:
    """Return why the working directory has no module of this name: it may not be read, or it has other modules."""
    parts = name.split(".")
    folders = [here, *(here.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1))]
    for folder in folders:
        if refused := explain_no_access(str(folder)):
            return f"; {refused}"
    folder = next((folder for folder in reversed(folders[:-1]) if folder.is_dir()), here)
    modules = sorted(
        {path.stem for path in folder.glob("*.py")} - {"__init__"}
        | {path.parent.name for path in folder.glob("*/*.py")}
    )
    if not modules:
        return (
            f"; {folder} has no Python file: start the worker in the folder of the module, or mount that folder there"
        )
    more = ", ..." if len(modules) > _MAX_LISTED else ""
    return f"; the modules in {folder} are {', '.join(modules[:_MAX_LISTED])}{more}"


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
