"""Explains why importing an agent's module failed: the error, and the file and line of its cause."""

import importlib.util
import sysconfig
import traceback
from pathlib import Path
from typing import Final

# Files under these folders belong to Python, to installed packages or to agentstream. Other files are the user's own.
_LIBRARIES: Final = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {str(Path(__file__).parents[1])}
)
_IMPORT: Final = "<frozen importlib"


def explain_import_error(exc: BaseException, module_name: str) -> str:
    """Return the class, the text and the place of an error that the import of ``module_name`` raised.

    Of an exception group it explains the first error. The place is the innermost line of the user's own code. If a
    library raised the error, its line follows. There is no place if the module itself was not found.
    """
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    try:
        text = str(exc)
    except Exception:  # noqa: BLE001 -- the user's own exception may raise anything
        text = "its text cannot be read"
    reason = f"{type(exc).__name__}: {text}" if text else type(exc).__name__
    place = _place(exc, module_name)
    return f"{reason}, at {place}" if place else reason


def _place(exc: BaseException, module_name: str) -> str:
    if isinstance(exc, SyntaxError):
        if exc.filename and Path(exc.filename).is_file():
            return _line(exc.filename, exc.lineno)
        if not _lines_of(exc):  # of the module itself: some errors name no file, for example a NUL in the source
            return _line(_file_of(module_name), exc.lineno)
    lines = _lines_of(exc)
    if not lines:
        return ""
    raised_at = lines[-1]
    own = next((line for line in reversed(lines) if not line[0].startswith(_LIBRARIES)), raised_at)
    return _line(*own) if own == raised_at else f"{_line(*own)} (raised at {_line(*raised_at)})"


def _lines_of(exc: BaseException) -> list[tuple[str, int | None]]:
    """Return file and line of each frame, outermost first, without those before the import and of the import itself.

    The frames of an error in another task begin in that task.
    """
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(exc.__traceback__)]
    is_import = [name.startswith(_IMPORT) for name, _ in frames]
    begin = is_import.index(True) if any(is_import) else 0
    return [frame for frame in frames[begin:] if not frame[0].startswith(_IMPORT)]


def _line(filename: str, number: int | None) -> str:
    return f"{filename}, line {number}" if number else filename


def _file_of(module_name: str) -> str:
    try:
        spec = importlib.util.find_spec(module_name)
    except Exception:  # noqa: BLE001 -- importing its package may fail in any way
        return ""
    return (spec.origin or "") if spec is not None else ""
