"""How far a graph has come: the texts and tools of its unfinished tasks, which LangGraph repeats after a loss.

A task is one execution of a node. Its namespace has the same name when it is repeated. LangGraph's own checkpointer
holds the results of the finished steps. This state is stored with the run after each step, so it says which text was
shown after that step.
"""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from agentstream.adapters.resuming import different_text
from agentstream.adapters.run_reporter import as_text
from agentstream.agents import Run
from agentstream.telemetry.masking import mask

NAMESPACE_SEPARATOR: Final = "|"


def mark(text: str) -> str:
    """Return a short name of a text or of a message's id."""
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()


def call_mark(tool: str, arguments: object) -> str:
    """Return a short name of a call without an id."""
    return mark(f"{tool} {mask(as_text(arguments))}")


@dataclass(slots=True)
class Progress:
    """The text and the tools of unfinished tasks, by namespace, and the marks of all messages that were shown.

    ``unseen_of`` gets each text of a task, also of a repeated task, and returns the part that is new to clients.
    """

    namespace: str = ""  # of the graph whose step ended last
    checkpoint_id: str | None = None  # LangGraph's, of that step
    before: dict[str, Any] = field(default_factory=dict)  # the texts and calls of that step, as its tasks ended
    wrote: bool = False  # whether any text was written
    shown: set[str] = field(default_factory=set)  # marks of the texts and ids of messages
    texts: dict[str, str] = field(default_factory=dict)  # everything that unfinished tasks have shown
    calls: dict[str, dict[str, str]] = field(default_factory=dict)  # their calls of tools: mark -> call id
    expected: dict[str, str] = field(default_factory=dict)  # of ``texts``, the part that a repeated task skips
    pool: str = ""  # shown after the last checkpoint, by any task; repeated tasks skip it after ``expected``
    begun: dict[str, str] = field(default_factory=dict)  # calls of earlier attempts: mark -> call id
    asked: set[str] = field(default_factory=set)  # tasks that LangGraph repeats because they asked people
    repeatable: set[str] = field(default_factory=set)  # of ``begun``, the marks of the calls of those tasks

    def as_json(self, answered: Collection[str] = ()) -> dict[str, Any]:
        """Return the state for a checkpoint. Another attempt must not repeat the calls with the ids ``answered``."""
        return {
            "asked": sorted(self.asked),
            "repeatable": sorted(mark for mark in self.repeatable if self.begun.get(mark) not in answered),
            "namespace": self.namespace,
            "checkpoint_id": self.checkpoint_id,
            "before": self.before,
            "wrote": self.wrote,
            "shown": sorted(self.shown),
            "pool": self.pool,
            **self._unfinished(),
        }

    def _unfinished(self) -> dict[str, Any]:
        texts = self.texts | {task: self.texts.get(task, "") + text for task, text in self.expected.items()}
        calls = {mark: call_id for calls in self.calls.values() for mark, call_id in calls.items()}
        return {"texts": texts, "begun": self.begun | calls}

    @classmethod
    def restored(cls, run: Run, saved: dict[str, Any] | None) -> "Progress":
        """Return the progress of the earlier attempts."""
        progress = cls()
        if saved is not None:
            progress.namespace, progress.checkpoint_id = saved["namespace"], saved["checkpoint_id"]
            progress.before, progress.wrote, progress.pool = saved["before"], saved["wrote"], saved["pool"]
            progress.shown = set(saved["shown"])
            progress.expected, progress.begun = dict(saved["texts"]), dict(saved["begun"])
            progress.asked, progress.repeatable = set(saved.get("asked", ())), set(saved.get("repeatable", ()))
        if run.restored is not None:
            progress.pool += run.restored.text
            progress.wrote = progress.wrote or bool(run.restored.text)
            for kind, data in run.restored.events:
                if kind == "tool_call_start":
                    call_id = str(data.get("tool_call_id"))
                    progress.begun |= {call_id: call_id, call_mark(data["tool"], data.get("arguments")): call_id}
        return progress

    def step_ended(self, namespace: str, checkpoint_id: str) -> None:
        """Forget the tasks of a step that has ended. ``namespace`` is that of its graph, empty for the whole graph."""
        self.namespace, self.checkpoint_id, self.before = namespace, checkpoint_id, self._unfinished()
        if not namespace:
            self.begun, self.asked, self.repeatable = {}, set(), set()
        inside = f"{namespace}{NAMESPACE_SEPARATOR}" if namespace else ""
        for by_task in (self.texts, self.calls, self.expected):
            for task in [task for task in by_task if task.startswith(inside)]:
                del by_task[task]

    def asks(self) -> None:
        """Note that the graph asks people. LangGraph repeats the tasks that ask, with their tools, after the answer."""
        self.repeatable |= {
            mark for calls in self.calls.values() for mark in calls
        }  # of this attempt, which is not lost
        unfinished = self._unfinished()
        self.expected, self.begun = unfinished["texts"], unfinished["begun"]
        self.texts, self.calls = {}, {}
        self.asked |= set(self.expected)

    def repeat_step(self) -> None:
        """Note that the last step is repeated, because the worker was lost before LangGraph had stored its end."""
        self.expected, self.begun = dict(self.before["texts"]), self.begun | self.before["begun"]

    @property
    def has_rest(self) -> bool:
        """Whether clients have seen text that no repeated task has written again."""
        return bool(self.pool or any(text for task, text in self.expected.items() if task not in self.asked))

    def unseen_of(self, task: str, text: str) -> str:
        """Return the part of a task's text that clients have not seen. Raises AgentError if they saw another text."""
        rest = text
        if expected := self.expected.pop(task, ""):
            is_asked = task in self.asked  # its text may depend on the answer
            rest, left = _skip(rest, expected, may_differ=is_asked)
            if left:
                self.expected[task] = left
        if rest and self.pool:
            rest, self.pool = _skip(rest, self.pool)
        self.texts[task] = self.texts.get(task, "") + text
        self.wrote = self.wrote or bool(text)
        return rest

    def cut_text_of(self, task: str) -> str:
        """Return the text of a task that was cut, which the task will not repeat."""
        cut = self.expected.pop(task, "") + self.pool
        self.pool = ""
        self.texts[task] = self.texts.get(task, "") + cut
        return cut

    def was_shown(self, text: str) -> bool:
        """Return whether clients have seen the text of a message after the last checkpoint. The text is taken once."""
        before, found, after = self.pool.partition(text)
        if found:
            self.pool = before + after
        return bool(found)

    def know(self, names: Iterable[str | None]) -> None:
        """Note texts and ids of messages that must not be written again."""
        self.shown |= {mark(name) for name in names if name}

    def knows(self, *names: str | None) -> bool:
        """Return whether one of these texts and ids is that of a message that was shown."""
        return not self.shown.isdisjoint({mark(name) for name in names if name})


def _skip(text: str, shown: str, *, may_differ: bool = False) -> tuple[str, str]:
    """Return what is left of both texts after the part that they share.

    If they differ, raises AgentError, or if they may, returns the whole text, of which nothing was shown.
    """
    shared = min(len(text), len(shown))
    if text[:shared] != shown[:shared]:
        if may_differ:
            return text, ""
        raise different_text()
    return text[shared:], shown[shared:]
