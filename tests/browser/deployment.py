"""The deployment of the page tests, and helpers that use the page like a person."""

import json
from pathlib import Path

from tests.browser.chromium import Chromium, Tab
from tests.processes import Process, Processes

QUICK_LEASE_S = "1"


class PageDeployment:
    """The page with real front ends and workers. The workers run the agents of page_agents.py."""

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
        """Start a front end and open its page in a tab."""
        return await self.browser.tab(await self.frontend(**settings))

    def open_gate(self, name: str) -> None:
        (self._gates / name).touch()

    def close_gate(self, name: str) -> None:
        (self._gates / name).unlink()


async def ask(tab: Tab, question: str) -> None:
    """Type a question and send it with Enter."""
    await until_models(tab)
    await tab.type("#prompt", question)
    await tab.press("Enter")


async def until_models(tab: Tab) -> None:
    """Wait until the page has loaded the models."""
    await tab.until("document.querySelector('#model').value !== ''")


async def choose_other(tab: Tab, name: str) -> None:
    """Choose a model that the server does not list, in the dialog for it."""
    await tab.evaluate(
        """(() => {
            const select = document.querySelector('#model');
            select.selectedIndex = select.length - 1;
            select.dispatchEvent(new Event('change', { bubbles: true }));
        })()"""
    )
    await tab.until("document.querySelector('#other-model').open")
    await tab.type("#other-name", name)
    await tab.press("Enter")
    await tab.until(f"document.querySelector('#model').value === {json.dumps(name)}")


def stat(name: str) -> str:
    """Return a script whose value is a number of the last exchange."""
    return f"[...document.querySelectorAll('[data-stat={name}]')].at(-1)?.textContent"


def ended(how: str) -> str:
    """Return a condition: the end of the last exchange starts with ``how``."""
    return f"({stat('ended')} ?? '').startsWith('{how}')"
