"""Tools of the user's own: a function becomes a tool, with its description and arguments taken from its source."""

import asyncio
import contextlib
import contextvars
import inspect
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import ArgsKwargs

from agentstream.tools.base import Tool, ToolError

RIGHT_FORM: Final = (
    "write a function with type hints and a docstring, or an object with name, description, parameters and "
    "`async def run(self, arguments: dict) -> str`"
)
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")  # model servers refuse other names


class PythonTool:
    """A tool that calls a function. A plain function runs in a thread.

    ``name`` is that of the function, ``description`` its docstring, and ``parameters`` come from its type hints.
    ``read_only``, ``idempotent`` and ``needs_approval`` are True if the function has such an attribute; see
    ``tools.base``.
    """

    def __init__(self, function: Callable[..., object]) -> None:
        """Raise TypeError if a model cannot call the function with named arguments."""
        self.name = str(getattr(function, "__name__", ""))
        self.description = inspect.getdoc(function) or ""
        self.read_only = getattr(function, "read_only", False) is True
        self.idempotent = getattr(function, "idempotent", False) is True
        self.needs_approval = bool(getattr(function, "needs_approval", False))
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function)
        try:
            self._call: TypeAdapter[object] = TypeAdapter(cast("Any", function))
            self.parameters = self._call.json_schema()
        except (PydanticUserError, NameError, TypeError) as exc:
            message = f"is a function whose parameters cannot be described to a model: {str(exc).splitlines()[0]}"
            raise TypeError(message) from exc
        if self.parameters.get("type") != "object":
            message = "is a function with parameters that have no name; a model calls it with named arguments"
            raise TypeError(message)

    async def run(self, arguments: dict[str, Any]) -> str:
        """Call the function and return its result. Raises ToolError if the arguments have wrong types.

        The result may have any type: the toolbox writes it as text.
        """
        try:
            called = self._call.validate_python if self._is_async else self._in_thread
            result: Any = called(ArgsKwargs((), arguments))
            return cast("str", await result)
        except ValidationError as exc:
            if not exc.title.startswith("call["):  # raised by the function itself
                raise
            faults = [f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in exc.errors()]
            message = f"wrong arguments: {'; '.join(faults)}"
            raise ToolError(message) from exc

    async def _in_thread(self, arguments: ArgsKwargs) -> object:
        """Call the function in a thread of its own: a function that hangs must not keep a stopped process alive."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[object] = loop.create_future()
        context = contextvars.copy_context()

        def call() -> None:
            result: object = None
            error: Exception | None = None
            try:
                result = self._call.validate_python(arguments)
            except BaseException as exc:  # noqa: BLE001 -- every exception is the outcome of the call
                error = _as_exception(exc)
            with contextlib.suppress(RuntimeError):  # the event loop has closed
                loop.call_soon_threadsafe(_settle, done, result, error)

        threading.Thread(target=context.run, args=(call,), name=f"tool {self.name}", daemon=True).start()
        return await done


def as_tools(found: object) -> list[Tool]:
    """Return an object of the user's as tools: a function, a tool, or a list or tuple of these.

    Raises TypeError if it is none of these. The message continues a sentence whose subject is the object.
    """
    return list(_tools_of(found))


def _tools_of(found: object) -> Iterator[Tool]:
    if isinstance(found, list | tuple):
        for member in found:
            try:
                yield from _tools_of(member)
            except TypeError as exc:
                message = f"has a member that {exc}"
                raise TypeError(message) from exc
        return
    if inspect.isclass(found):
        message = f"is the class {found.__name__}; name an object of it, for example `tool = {found.__name__}()`"
        raise TypeError(message)
    tool = _as_tool(found)
    name: object = tool.name
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        message = f"has the name {name!r:.80}; the name of a tool has 1 to 64 letters, digits, '_' or '-'"
        raise TypeError(message)
    yield tool


def _as_tool(found: object) -> Tool:
    if all(hasattr(found, name) for name in ("name", "description", "parameters", "run")):
        if inspect.iscoroutinefunction(found.run):  # type: ignore[attr-defined]  # checked above
            return cast("Tool", found)
        message = "has a method `run` that is not async; write `async def run(self, arguments: dict) -> str`"
        raise TypeError(message)
    if inspect.isroutine(found):
        return PythonTool(found)
    message = f"is a {type(found).__name__}; {RIGHT_FORM}"
    raise TypeError(message)


def _settle(done: asyncio.Future[object], result: object, error: Exception | None) -> None:
    if done.done():  # the call was cancelled or took too long
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


def _as_exception(exc: BaseException) -> Exception:
    """Return an exception that a future can hold and that does not end the worker."""
    if isinstance(exc, Exception) and not isinstance(exc, StopIteration):
        return exc
    return RuntimeError(f"the tool raised {type(exc).__name__}: {exc}")
