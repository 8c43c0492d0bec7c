"""Watches the source files of a folder, for ``agentstream up --reload``. It compares file times at intervals."""

import asyncio
import contextlib
import importlib.util
import itertools
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

POLL_S: Final = 0.5
# After a change, further changes are awaited for this time: a checkout or an editor writes several files.
SETTLE_S: Final = 0.2
MAX_SETTLES: Final = 10
# One look at so many files and folders takes about 0.1 s, in a thread. The working directory may be a whole disk.
MAX_FILES: Final = 10_000
MAX_FOLDERS: Final = 5_000
# The watch takes at most this share of a core.
MAX_LOAD: Final = 0.1

SUFFIX: Final = ".py"
# Folders with files that a tool wrote. Hidden folders and virtual environments are skipped too.
_SKIPPED: Final = frozenset({"__pycache__", "node_modules", "site-packages"})
_ENVIRONMENT_MARK: Final = "pyvenv.cfg"

State = dict[Path, tuple[int, int]]  # (time of the last change in ns, size) by file


class FileWatch:
    """The Python files below a folder, and single other files."""

    def __init__(self, folder: Path, others: Iterable[Path] = ()) -> None:
        """Watch the Python files below ``folder`` and the files ``others``, from their present state on."""
        self._folder = folder
        self._others = tuple(others)
        self._state, self.truncated = self._look()

    @property
    def count(self) -> int:
        """The number of watched files."""
        return len(self._state)

    async def changes(self) -> AsyncIterator[Sequence[Path]]:
        """Yield the files that were written, created or removed since the last time, at least one."""
        clock = asyncio.get_running_loop().time
        while True:
            began_s = clock()
            changed = await asyncio.to_thread(self._changed)
            look_s = clock() - began_s
            if changed:
                for _ in range(MAX_SETTLES):
                    await asyncio.sleep(SETTLE_S)
                    more = await asyncio.to_thread(self._changed)
                    changed |= more
                    if not more:
                        break
                yield sorted(changed)
            await asyncio.sleep(max(POLL_S, look_s / MAX_LOAD))

    def _changed(self) -> set[Path]:
        before = self._state
        self._state, self.truncated = self._look()
        changed = {path for path in before.keys() | self._state.keys() if before.get(path) != self._state.get(path)}
        for path in changed:
            _remove_bytecode(path)
        return changed

    def _look(self) -> tuple[State, bool]:
        """Return the state of the files, at most MAX_FILES in MAX_FOLDERS, and whether there are more."""
        state: State = {}
        for path in itertools.chain(self._others, _python_files(self._folder)):
            if path is None or len(state) >= MAX_FILES:
                return state, True
            with contextlib.suppress(OSError):  # removed meanwhile
                found = path.stat()
                state[path] = (found.st_mtime_ns, found.st_size)
        return state, False


def _python_files(folder: Path) -> Iterator[Path | None]:
    """Yield the Python files below a folder in a fixed order, and None in place of the files beyond MAX_FOLDERS.

    Does not follow links to folders.
    """
    for number, (root, folders, files) in enumerate(os.walk(folder)):
        if number >= MAX_FOLDERS:
            yield None
            return
        folders[:] = sorted(name for name in folders if _is_watched(Path(root, name)))
        yield from (Path(root, name) for name in sorted(files) if name.endswith(SUFFIX))


def _is_watched(folder: Path) -> bool:
    name = folder.name
    return not (name.startswith(".") or name in _SKIPPED or (folder / _ENVIRONMENT_MARK).exists())


def _remove_bytecode(source: Path) -> None:
    """Remove the cached bytecode of a changed file.

    Python compares times in whole seconds, so two changes of equal size within a second look like one to it.
    """
    with contextlib.suppress(OSError, NotImplementedError):
        Path(importlib.util.cache_from_source(str(source))).unlink()
