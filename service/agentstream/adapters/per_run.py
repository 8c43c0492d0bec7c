"""Options of adapters that differ from run to run: functions of the run."""

import functools
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from agentstream.agents import Run
from agentstream.protocol.openai import ChatMessage


async def value_for(option: Any, run: Run) -> Any:  # noqa: ANN401 -- an option of a framework
    """Return the value of an option for a run.

    If the option is a function, it is called with the run, for example ``lambda run: Deps(run.caller)``. It may be
    async. Any other value is returned unchanged. To pass a function as
    the value, wrap it: ``lambda run: my_function``.
    """
    if inspect.isroutine(option) or isinstance(option, functools.partial):
        value = option(run)
        return await value if inspect.iscoroutine(value) else value
    return option


async def options_for(options: Mapping[str, Any], names: Collection[str], run: Run) -> dict[str, Any]:
    """Return the options for a run. Those with one of the ``names`` may be functions of the run (``value_for``)."""
    return {name: await value_for(option, run) if name in names else option for name, option in options.items()}


def since_last_answer(messages: list[ChatMessage]) -> list[ChatMessage]:
    """Return the messages after the last answer of the assistant: the new ones for a framework with a memory.

    Clients of the chat completions API send the whole conversation each time. Results of the client's tools belong to
    the calls in the answer before them, which the framework has too.
    """
    last = max((at for at, message in enumerate(messages) if message.role == "assistant"), default=-1)
    return messages[last + 1 :]
