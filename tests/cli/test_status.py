"""The live status of ``agentstream up``: two fixed rows, with scrolling output above them."""

import os
import re
import signal
from pathlib import Path

import aiohttp
import pytest

from agentstream.cli.terminal.status import UNKNOWN, LiveMetrics, Rate, parse_metrics, status_lines
from tests.cli.terminals import Terminal, terminal
from tests.faults.clients import AGENT, request
from tests.processes import ROOT, ended, linux_only

EXPOSITION = """\
# HELP agentstream_open_runs Runs a client is waiting for
# TYPE agentstream_open_runs gauge
agentstream_open_runs 3.0
# TYPE agentstream_workers_alive gauge
agentstream_workers_alive{queue="a"} 2.0
agentstream_workers_alive{queue="b"} 1.0
# TYPE agentstream_queued_jobs gauge
agentstream_queued_jobs{queue="a"} 4.0
agentstream_queued_jobs{queue="b"} 5.0
# TYPE agentstream_waiting_jobs gauge
agentstream_waiting_jobs{queue="a"} 3.0
agentstream_waiting_jobs{queue="b"} 0.0
# TYPE agentstream_tokens_total counter
agentstream_tokens_total 120.0
"""


def test_values_are_read_from_the_metrics() -> None:
    """Runs are the sum of all queues and count whether a client waits or not; those that run are not queued."""
    assert parse_metrics(EXPOSITION) == LiveMetrics(open_runs=9, queued=3, workers=1, tokens=120.0)


def test_missing_values_are_unknown() -> None:
    """A value of -1 or a missing metric is unknown, not zero."""
    away = EXPOSITION.replace("4.0", "-1").replace("2.0", "-1").partition("# TYPE agentstream_tokens")[0]
    assert parse_metrics(away) == LiveMetrics(open_runs=None, queued=3, workers=None, tokens=None)
    assert parse_metrics("") == UNKNOWN


def test_a_rate_is_the_growth_per_second() -> None:
    """A rate is the growth of a counter per second, None for the first sample and 0 after a reset."""
    rate = Rate()
    assert rate.update(100, 1.0) is None
    assert rate.update(150, 3.0) == 25
    assert rate.update(10, 4.0) == 0
    assert rate.update(None, 5.0) is None
    assert rate.update(50, 6.0) is None


@pytest.mark.parametrize(
    ("metrics", "tokens_s", "expected"),
    [
        (LiveMetrics(3, 9, 1, 7), 42.4, "workers 1/2 (11 -)   open runs 3   queued 9   42 tokens/s streamed"),
        (LiveMetrics(3, 9, 1, 7), None, "workers 1/2 (11 -)   open runs 3   queued 9   ? tokens/s streamed"),
        (LiveMetrics(3, 9, 3, None), None, "workers 1/2 (11 -)   open runs 3   queued 9"),
        (LiveMetrics(0, None, None, None), None, "workers ?/2 (11 -)   open runs 0   queued ?"),
        (UNKNOWN, None, "workers ?/2 (11 -)   the front end does not answer"),
    ],
)
def test_the_status_shows_the_known_values(metrics: LiveMetrics, tokens_s: float | None, expected: str) -> None:
    """The second row shows live and expected workers, their pids, runs, jobs and tokens, with ? for unknown values."""
    pids = [("frontend", 10), ("worker 1", 11), ("worker 2", None)]
    first, second = status_lines("http://h:1", pids, metrics, restarts=2, age_s=200, tokens_s=tokens_s)
    assert second.strip() == expected
    assert first.split("   ") == [" http://h:1", "up 3m20s", "front end 10", "restarts 2", "ctrl-C to stop"]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (LiveMetrics(3, 1, 2, 7), "waiting for frontend, worker 1   open runs 3   queued 1"),
        (UNKNOWN, "waiting for frontend, worker 1"),
    ],
)
def test_the_status_shows_the_stop(metrics: LiveMetrics, expected: str) -> None:
    """During a stop the status names the processes that still run, and the key that ends them at once."""
    pids = [("frontend", 10), ("worker 1", 11), ("worker 2", None)]
    first, second = status_lines("http://h:1", pids, metrics, restarts=0, age_s=9, tokens_s=None, stopping_s=3.2)
    assert first.strip() == "http://h:1   stopping for 3s   ctrl-C again ends everything now"
    assert second.strip() == expected


SETTINGS = {
    "AGENTSTREAM_PORT": "0",
    "AGENTSTREAM_WORKERS": "1",
    "AGENTSTREAM_AGENT": AGENT,
    "PYTHONPATH": str(ROOT),
}


def above(lines: list[str]) -> str:
    """Return the text of the screen above the status."""
    return "\n".join(lines[:-2])


async def url_of(shown: Terminal) -> str:
    """Wait until the status shows the address, and return it."""
    await shown.until(lambda lines: re.match(r" http://\S+ +up \d+s +front end \d+ +restarts 0", lines[-2]))
    return shown.lines[-2].split()[0]


async def test_the_status_stays_and_the_log_scrolls_above_it() -> None:
    """Output scrolls above the two status rows, which show runs, jobs, workers and the restarts of killed children."""
    async with terminal("up", settings=SETTINGS) as shown:
        url = await url_of(shown)
        await shown.until(lambda lines: "workers 1/1" in lines[-1] and "open runs 0   queued 0" in lines[-1])
        assert f"serving   {url}  (playground there; API at {url}/v1)" in above(shown.lines)
        assert re.search(r"(?m)^worker 1  pid \d+$", above(shown.lines))
        assert "serving on http" in above(shown.lines)  # a child's own log line
        async with aiohttp.ClientSession() as session:
            body = request(["gate", "/nonexistent/gate"], stream=True)
            async with session.post(f"{url}/v1/chat/completions", json=body):
                await shown.until(lambda lines: "open runs 1   queued 0" in lines[-1])
            background = request(["gate", "/nonexistent/gate"], background=True)
            async with session.post(f"{url}/v1/chat/completions", json=background) as response:
                run_id = (await response.json())["id"]
            await shown.until(lambda lines: "open runs 1   queued 0" in lines[-1])
            async with session.post(f"{url}/v1/chat/completions/{run_id}/cancel"):
                pass
        await shown.until(lambda lines: "open runs 0   queued 0" in lines[-1])
        match = re.search(r"worker 1  pid (\d+)", above(shown.lines))
        assert match
        os.kill(int(match[1]), signal.SIGKILL)
        await shown.until(lambda lines: "ended with code -9; starting it again" in above(lines))
        await shown.until(lambda lines: "restarts 1" in lines[-2] and match[1] not in lines[-1])
        await shown.until(lambda lines: "workers 1/1" in lines[-1])
        shown.type("\x03")
        assert await shown.ended() == 0
        assert "front end does not answer" not in shown.output
        assert "stopping" in "\n".join(shown.lines)
        assert "workers 1/1" not in "\n".join(shown.lines)
        assert "Traceback" not in shown.output


async def test_the_status_follows_the_window_size() -> None:
    """In a small window the output scrolls above the status, and after a resize the status is at the new bottom."""
    async with terminal("up", rows=8, columns=80, settings=SETTINGS) as shown:
        await url_of(shown)
        await shown.until(lambda lines: "ctrl-C ends everything" in above(lines))
        shown.resize(12, 60)
        await shown.until(lambda lines: re.match(r" http://\S+", lines[-2]) and "workers 1/1" in lines[-1])
        assert len(shown.lines[-2]) <= 60
        assert "workers 1/1" not in above(shown.lines)
        shown.type("\x03")
        assert await shown.ended() == 0


async def test_a_very_small_window_has_no_status() -> None:
    """A window of five rows shows only output and no status."""
    async with terminal("up", rows=5, settings=SETTINGS) as shown:
        await shown.until(lambda lines: "try       agentstream" in "\n".join(lines))
        shown.type("\x03")
        assert await shown.ended() == 0
        assert "workers 1/1" not in shown.output


async def test_a_second_ctrl_c_ends_at_once() -> None:
    """After ctrl-C the terminal lists the open runs; a second ctrl-C ends all processes without an error message."""
    async with terminal("up", settings=SETTINGS) as shown, aiohttp.ClientSession() as session:
        url = await url_of(shown)
        body = request(["gate", "/nonexistent/gate"], background=True)
        async with session.post(f"{url}/v1/chat/completions", json=body):
            await shown.until(lambda lines: "open runs 1   queued 0" in lines[-1])
        shown.type("\x03")
        await shown.until(lambda lines: "waits up to 20 s for its open runs" in above(lines))
        await shown.until(lambda lines: re.search(r"stopping for .* ctrl-C again", lines[-2]))
        await shown.until(lambda lines: re.fullmatch(r" waiting for worker 1", lines[-1]))
        shown.type("\x03")
        assert await shown.ended() == 130
        assert not re.search(r"Aborted|Traceback|Warning|does not answer", shown.output)


@linux_only
async def test_a_closed_window_ends_everything(tmp_path: Path) -> None:
    """If the window is closed, ``up`` drains, although it can print nothing any more, and leaves no file."""
    async with terminal("up", settings={**SETTINGS, "TMPDIR": str(tmp_path)}) as shown:
        await url_of(shown)
        await shown.until(lambda lines: "workers 1/1" in lines[-1])
        pids = [int(pid) for pid in re.findall(r"(?m)^\S.*? +pid (\d+)", above(shown.lines))]
        assert len(pids) == 3
        shown.close_window()
        assert await shown.ended() == 0
        for pid in pids:
            await ended(pid)
    assert os.listdir(tmp_path) == []  # noqa: PTH208 -- a small local folder does not block
