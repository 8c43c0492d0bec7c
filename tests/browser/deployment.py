"""The page, real processes behind it, and how a person uses it."""

from pathlib import Path

from tests.browser.chromium import Chromium, Tab
from tests.processes import Process, Processes

QUICK_LEASE_S = "1"


class PageDeployment:
    """The page, served by real processes with the agents of page_agents.py."""

    def __init__(self, browser: Chromium, processes: Processes, gates: Path) -> None:
        self._gates = gates
        self.browser = browser
        self.processes = processes

    async def frontend(self, **settings: str) -> str:
        return await self.processes.frontend(AGENTSTREAM_LEASE_S=QUICK_LEASE_S, **settings)

    async def worker(self, agent: str = "picked", **settings: str) -> Process:
        return await self.processes.worker(
            f"tests.browser.page_agents:{agent}",
            GATES=str(self._gates),
            AGENTSTREAM_LEASE_S=QUICK_LEASE_S,
            **settings,
        )

    async def page(self, **settings: str) -> Tab:
        """Start a front end and open its page."""
        return await self.browser.tab(await self.frontend(**settings))

    def open_gate(self, name: str) -> None:
        (self._gates / name).touch()

    def close_gate(self, name: str) -> None:
        (self._gates / name).unlink()


async def ask(tab: Tab, question: str) -> None:
    """Type a question and send it as a person at the keyboard does."""
    await tab.until("document.querySelector('#model').placeholder !== ''")
    await tab.type("#prompt", question)
    await tab.press("Enter")


def stat(name: str) -> str:
    """Return a script that gives one of the last exchange's numbers."""
    return f"[...document.querySelectorAll('[data-stat={name}]')].at(-1)?.textContent"


def ended(how: str) -> str:
    """Return the condition that the last exchange ended so."""
    return f"({stat('ended')} ?? '').startsWith('{how}')"
