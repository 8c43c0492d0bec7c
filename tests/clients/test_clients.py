"""Stock clients against the service, as they are released."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.scenarios import TEXT
from tests.clients.suite import (
    AGENT,
    CLIENTS,
    HERE,
    NO_ENVIRONMENT,
    Client,
    absent_environments,
    find_errors,
    run_suite,
)
from tests.clients.table import markdown, table
from tests.processes import ROOT, Processes

DOCUMENT = ROOT / "deploy" / "CLIENTS.md"


@pytest.mark.timeout(300)
async def test_every_client_sees_what_the_agent_said(
    processes: Processes, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    """No client raises, miscounts, loses text, hangs or fails to stop a run, and the published table says so."""
    if absent := absent_environments():
        pytest.skip(f"the stock clients are not installed ({', '.join(absent)}): run make clients")
    await processes.worker(AGENT, AGENTSTREAM_CONCURRENCY="200")
    url = await processes.frontend()
    reports = await run_suite(url, tmp_path)
    print(f"\n{table(reports)}")  # noqa: T201 -- the suite's result, for who runs it with -s
    for report in reports:
        for mode in {*report.seen, *report.complaints}:
            with subtests.test(client=report.client.name, version=report.version, mode=mode):
                assert report.complaints.get(mode, []) == []
    written = markdown(reports)
    published = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.is_file() else ""
    DOCUMENT.write_text(written, encoding="utf-8")
    assert written == published, f"{DOCUMENT.name} was out of date and has been written anew: look at it, and commit it"


FINE = {"text": TEXT, "pieces": 4, "raised": None, "finish": "stop", "usage": [11, 7, 18], "usages": 1}
PLAIN = Client("plain", NO_ENVIRONMENT, "plain.py", "plain")


def test_what_is_right_is_not_complained_of() -> None:
    """A user who saw the text, the reason and the usage, or cannot tell the last two, has nothing to complain of."""
    assert find_errors(PLAIN, "loop", FINE) == []
    assert find_errors(PLAIN, "loop", {"text": TEXT, "pieces": 4, "raised": None}) == []


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ({"raised": "IndexError: list index out of range"}, "raised IndexError"),
        ({"text": TEXT.strip()}, "text"),
        ({"pieces": 1}, "one piece"),
        ({"finish": None}, "finish reason"),
        ({"usage": [22, 14, 36]}, "usage"),
        ({"usage": None}, "usage"),
        ({"usages": 2}, "usage"),
    ],
)
def test_what_is_wrong_is_complained_of(fault: dict[str, Any], complaint: str) -> None:
    """Whatever a user sees that the agent did not say is found."""
    [found] = find_errors(PLAIN, "loop", FINE | fault)
    assert complaint in found


def test_pins_name_no_registry() -> None:
    """Every release is pinned by its hash, and no list says where to get it from."""
    lock = json.loads((HERE / "package-lock.json").read_text())
    packages = [package for path, package in lock["packages"].items() if path]
    assert all("integrity" in package and "resolved" not in package for package in packages)
    lists = sorted((HERE / "pins").glob("*.txt"))
    assert {path.stem for path in lists} == {client.environment for client in CLIENTS} - {NO_ENVIRONMENT}
    for path in lists:
        text = path.read_text()
        assert "://" not in text
        assert "--hash=sha256:" in text
