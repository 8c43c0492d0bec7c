"""Stock clients, as released, against the service."""

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
from tests.clients.table import TABLE, table, with_table
from tests.processes import ROOT, Processes

DOCUMENT = ROOT / "deploy" / "guides" / "clients.md"


@pytest.mark.timeout(300)
async def test_every_client_receives_the_answer(
    processes: Processes, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    """No client raises, miscounts usage, loses text, hangs or fails to cancel, and the published table is current."""
    if absent := absent_environments():
        pytest.skip(f"the stock clients are not installed ({', '.join(absent)}): run make clients")
    await processes.worker(AGENT, AGENTSTREAM_CONCURRENCY="200")
    url = await processes.frontend()
    reports = await run_suite(url, tmp_path)
    print(f"\n{table(reports)}")  # noqa: T201 -- shows the result of the suite with -s
    for report in reports:
        for mode in {*report.seen, *report.complaints}:
            with subtests.test(client=report.client.name, version=report.version, mode=mode):
                assert report.complaints.get(mode, []) == []
    published = DOCUMENT.read_text(encoding="utf-8")
    written = with_table(published, reports)
    DOCUMENT.write_text(written, encoding="utf-8")
    assert written == published, f"{DOCUMENT.name} was out of date. The test has updated it: review and commit it"


FINE = {"text": TEXT, "pieces": 4, "raised": None, "finish": "stop", "usage": [11, 7, 18], "usages": 1}
PLAIN = Client("plain", NO_ENVIRONMENT, "plain.py", "plain")


def test_a_correct_observation_has_no_errors() -> None:
    """An observation with the right text, finish reason and usage, or only the text, has no errors."""
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
def test_a_wrong_observation_has_an_error(fault: dict[str, Any], complaint: str) -> None:
    """Each difference from the output of the agent is found."""
    [found] = find_errors(PLAIN, "loop", FINE | fault)
    assert complaint in found


def test_the_table_has_its_place_in_the_guide() -> None:
    """The guide has the markers, the suite writes the table between them, and nothing else changes."""
    guide = DOCUMENT.read_text(encoding="utf-8")
    written = with_table(guide, [])
    assert TABLE.sub("", written) == TABLE.sub("", guide)
    assert table([]) in written


def test_pins_name_no_registry() -> None:
    """Every release is pinned by its hash, and no list names a registry."""
    lock = json.loads((HERE / "package-lock.json").read_text())
    packages = [package for path, package in lock["packages"].items() if path]
    assert all("integrity" in package and "resolved" not in package for package in packages)
    lists = sorted((HERE / "pins").glob("*.txt"))
    assert {path.stem for path in lists} == {client.environment for client in CLIENTS} - {NO_ENVIRONMENT}
    for path in lists:
        text = path.read_text()
        assert "://" not in text
        assert "--hash=sha256:" in text
