"""A run survives its client: after a cut at any byte it can be resumed on another front end and retrieved."""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from agentstream.protocol.jobs import RUN_ID
from agentstream.protocol.keys import Keys
from agentstream.stream.transcript import TURN_SEPARATOR
from tests.faults.clients import (
    AGENT,
    FORMATS,
    PATH,
    Client,
    Step,
    frames,
    http_client,
    last_id,
    request,
    run_id_of,
)
from tests.faults.resume_agents import USAGE
from tests.helpers import decode, texts
from tests.processes import Processes

SEED = 20240611
DONE = b"data: [DONE]\n\n"
# Every kind of frame: text, tools, results that come with text, a separator, a final chunk of several parts.
STORY: list[Step] = [["note", "x"], ["say", 12], ["tool"], ["say", 12], ["note", "y"], ["tool"], ["say", 3]]
VIEWS = [(event_format, include_usage) for event_format in FORMATS for include_usage in (False, True)]
SMALL_LOG = {"AGENTSTREAM_LOG_MAX_BYTES": str(64 << 10)}


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Yield a client without an API key."""
    async with http_client() as opened:
        yield opened


@pytest.fixture
async def broker(broker_url: str) -> AsyncIterator["redis.asyncio.Redis"]:
    """Yield a connection with which tests delete stored keys."""
    async with redis.asyncio.Redis.from_url(broker_url) as connection:
        yield connection


def background(*steps: Step, include_usage: bool = False) -> dict[str, Any]:
    """Return the request of a run that survives its client."""
    return request(*steps, background=True, **({"stream_options": {"include_usage": True}} if include_usage else {}))


def resuming(event_format: str, cursor: str | None, *, by_header: bool) -> dict[str, str]:
    """Return the query and header that resume a stream in this format."""
    query = f"?stream=true&agent_events={event_format}"
    if cursor is None:
        return {"query": query}
    return {"query": query, "Last_Event_ID": cursor} if by_header else {"query": f"{query}&starting_after={cursor}"}


async def settled(client: Client, url: str, run_id: str) -> dict[str, Any]:
    """Wait for the end of a run, and return it as one object."""
    await client.whole(url, run_id=run_id)
    status, body = await client.get(url, run_id)
    assert status == 200
    assert isinstance(body, dict)
    return body


@pytest.mark.parametrize("number", range(3))
async def test_the_pieces_of_a_cut_stream_equal_the_whole(
    processes: Processes, client: Client, tmp_path: Path, number: int
) -> None:
    """A stream that is cut at any byte and resumed on the other front end equals the uncut stream."""
    urls = await asyncio.gather(processes.frontend(), processes.frontend())
    await processes.worker(AGENT)
    length = len(await client.whole(urls[0], background(*STORY)))

    async def cut_and_resumed(event_format: str, *, include_usage: bool) -> None:
        cuts = random.Random(f"{SEED} {number} {event_format} {include_usage}")  # noqa: S311 -- seeded, so that it is repeatable
        gate = tmp_path / f"{event_format}-{include_usage}"
        body = background(*STORY[:3], ["gate", str(gate)], *STORY[3:], include_usage=include_usage)
        async with client.streaming(urls[0], body, query=f"?agent_events={event_format}") as stream:
            joined = frames(await stream.read(cuts.randrange(400, length // 4)))
        run_id = run_id_of(joined[0])
        undisturbed = asyncio.create_task(
            client.whole(urls[0], run_id=run_id, **resuming(event_format, None, by_header=True))
        )
        gate.touch()
        resumes = 0
        while joined[-1] != DONE:
            resumes += 1
            asked = resuming(event_format, last_id(joined), by_header=resumes % 2 == 1)
            async with client.streaming(urls[resumes % 2], run_id=run_id, **asked) as stream:
                joined += frames(await stream.read(cuts.randrange(1, 1 + length // 3)))
        whole = frames(await undisturbed)
        assert joined == whole, (event_format, include_usage, resumes)
        again = await client.whole(urls[1], run_id=run_id, **resuming(event_format, None, by_header=True))
        assert frames(again) == whole

    async with asyncio.TaskGroup() as group:
        for event_format, include_usage in VIEWS:
            group.create_task(cut_and_resumed(event_format, include_usage=include_usage))


@pytest.mark.parametrize(
    "steps",
    [STORY, [["tool"], ["answer", "word by word, at the end"]], [["say", 2], ["tool"], ["fail", "no"]], []],
    ids=["streamed", "replayed", "failed", "empty"],
)
async def test_every_position_of_an_ended_run_resumes_with_the_rest(
    processes: Processes, client: Client, steps: list[Step]
) -> None:
    """After the end of a run, resuming after any frame sends exactly the frames after it."""
    urls = await asyncio.gather(processes.frontend(), processes.frontend())
    await processes.worker(AGENT)
    for event_format, include_usage in VIEWS:
        raw = await client.whole(
            urls[0], background(*steps, include_usage=include_usage), query=f"?agent_events={event_format}"
        )
        whole, run_id = frames(raw), run_id_of(raw)
        positions = [last_id([frame]) for frame in whole]
        assert positions[0] == "0-0"
        assert (whole[-1], positions[-1]) == (DONE, None)
        assert None not in positions[:-1]
        assert len(set(positions)) == len(positions)
        rests = await asyncio.gather(
            *(
                client.whole(
                    urls[index % 2], run_id=run_id, **resuming(event_format, position, by_header=index % 3 == 0)
                )
                for index, position in enumerate(positions[:-1])
            )
        )
        for index, rest in enumerate(rests):
            assert frames(rest) == whole[index + 1 :], (event_format, include_usage, positions[index])
        assert rests[-1] == DONE


async def test_a_stream_is_resumed_in_another_format(processes: Processes, client: Client) -> None:
    """A stream that is resumed in another format loses and repeats no text."""
    url = await processes.frontend()
    await processes.worker(AGENT)
    raw = await client.whole(url, background(*STORY))
    whole, run_id = frames(raw), run_id_of(raw)
    everything = texts(decode(raw))
    for index, frame in enumerate(whole[:-1]):
        for event_format in FORMATS:
            asked = resuming(event_format, last_id([frame]), by_header=True)
            rest = await client.whole(url, run_id=run_id, **asked)
            assert texts(decode(b"".join(whole[: index + 1]))) + texts(decode(rest)) == everything


async def test_keepalives_are_no_part_of_the_stream(processes: Processes, client: Client, tmp_path: Path) -> None:
    """A stream that is cut in the middle of a keepalive is resumed without a loss, and keepalives have no position."""
    urls = await asyncio.gather(processes.frontend(), processes.frontend())
    await processes.worker(AGENT)
    gate = tmp_path / "gate"
    body = background(["say", 3], ["gate", str(gate)], ["say", 3])
    async with client.streaming(urls[0], body) as stream:
        raw = await stream.until(b": keep")
    joined = frames(raw)
    assert len(joined) == 4
    run_id = run_id_of(raw)
    async with client.streaming(urls[1], run_id=run_id, **resuming("named", last_id(joined), by_header=True)) as stream:
        first = await stream.until(b"\n")
        assert first == b": keepalive\n"
        gate.touch()
        joined += frames(first + await stream.rest())
    assert joined == frames(await client.whole(urls[0], run_id=run_id))


async def test_a_retrieved_run_shows_its_current_state(processes: Processes, client: Client, tmp_path: Path) -> None:
    """GET shows a run as queued, then in_progress with its text so far, then as the completed answer."""
    urls = await asyncio.gather(processes.frontend(), processes.frontend())
    gate = tmp_path / "gate"
    steps = [*STORY[:3], ["gate", str(gate)], *STORY[3:]]
    status, created = await client.post(urls[0], background(*steps))
    assert status == 200
    assert created["status"] == "queued"
    run_id = created["id"]
    assert await client.get(urls[1], run_id) == (200, created)
    await processes.worker(AGENT)
    async with client.streaming(urls[0], run_id=run_id) as stream:
        await stream.until(b"event: tool_call_end\n")
    status, partial = await client.get(urls[1], run_id)
    assert (status, partial["status"]) == (200, "in_progress")
    text = "".join(f"{number} \u00fc\u2028\n" for number in range(12))
    assert partial["choices"][0]["message"]["content"] == text
    assert partial["choices"][0]["finish_reason"] is None
    gate.touch()
    ended = await settled(client, urls[1], run_id)
    assert ended["status"] == "completed"
    assert ended["usage"] == USAGE
    _, waited_for = await client.post(urls[0], request(*steps))
    assert ended == waited_for | {"id": run_id, "created": created["created"]}


async def test_a_retrieved_failed_run_has_its_error(processes: Processes, client: Client) -> None:
    """GET of a failed run has its text so far, and the same error code as a request that is not streamed."""
    url = await processes.frontend()
    await processes.worker(AGENT)
    steps: list[Step] = [["say", 1], ["fail", "broken on purpose"]]
    _, created = await client.post(url, background(*steps))
    ended = await settled(client, url, created["id"])
    status, refused = await client.post(url, request(*steps))
    assert ended["status"] == "failed"
    assert ended["choices"][0]["message"]["content"].removesuffix(TURN_SEPARATOR) == "0 \u00fc\u2028\n"
    assert status == 500
    assert ended["error"]["code"] == refused["error"]["code"]
    assert ended["error"]["message"] == "broken on purpose"
    assert refused["error"]["message"].endswith("broken on purpose")


@pytest.mark.parametrize("running", [True, False], ids=["running", "queued"])
async def test_a_retrieved_cancelled_run_has_its_partial_text(
    processes: Processes, client: Client, tmp_path: Path, *, running: bool
) -> None:
    """GET of a cancelled run equals the answer of its cancel: the partial text, usage and status cancelled."""
    urls = await asyncio.gather(processes.frontend(), processes.frontend())
    _, created = await client.post(urls[0], background(["say", 2], ["tool"], ["gate", str(tmp_path / "never")]))
    run_id = created["id"]
    if running:
        await processes.worker(AGENT)
        async with client.streaming(urls[0], run_id=run_id) as stream:
            await stream.until(b"event: tool_call_end\n")
    cancelled = await client.call("POST", f"{urls[1]}{PATH}/{run_id}/cancel")
    assert cancelled[0] == 200
    assert cancelled[1]["status"] == "cancelled"
    assert cancelled[1]["choices"][0]["message"]["content"] == ("0 \u00fc\u2028\n1 \u00fc\u2028\n" if running else "")
    assert (cancelled[1]["usage"]["total_tokens"] > 0) is running
    assert await client.get(urls[0], run_id) == cancelled
    assert await client.call("POST", f"{urls[0]}{PATH}/{run_id}/cancel") == cancelled
    final = decode(await client.whole(urls[0], run_id=run_id))[-2][1]
    assert final["agent_error"]["code"] == "cancelled"


FORGED = [
    "garbage", "1", "1-", "-1", "-1-5", "1--5", "1-5-2", "1-5.", "1-5.x", "1.5", "1-5 ", "0x1-5", "1-\u0665",
    "\uff11-1", "1-1e3", "9" * 400, f"{'9' * 10}-1", f"1-{'9' * 16}", "1-5\u0000", "1-5%00", "NaN", "null", "*", "+",
    "$", "<script>", "../../etc", "\U0001f600",
]  # fmt: skip
BEYOND = ["1-999999", "2-1", "999999999-1", "1-999999999999999", "999999999-999999999999999.999999999"]


async def test_forged_cursors_are_refused(processes: Processes, client: Client) -> None:
    """A malformed cursor, or a cursor after the end of the run, gets a 400 that names it, and the run is not harmed."""
    url = await processes.frontend()
    await processes.worker(AGENT)
    raw = await client.whole(url, background(["say", 5]))
    resume = f"{url}{PATH}/{run_id_of(raw)}"
    for cursor in FORGED + BEYOND:
        async with client.session.get(resume, params={"stream": "true", "starting_after": cursor}) as response:
            answers = [(response.status, await response.json())]
        if cursor.isprintable():
            async with client.session.get(f"{resume}?stream=true", headers={"Last-Event-ID": cursor}) as response:
                if cursor.strip() == cursor:  # HTTP strips the value of a header
                    answers.append((response.status, await response.json()))
        for status, body in answers:
            assert status == 400, cursor
            assert set(body["error"]) == {"message", "type", "param", "code"}
            assert body["error"]["type"] == "invalid_request_error"
            assert body["error"]["param"] == "starting_after"
    assert frames(await client.whole(url, run_id=run_id_of(raw))) == frames(raw)


async def test_a_cursor_beyond_a_queued_run_is_refused(processes: Processes, client: Client) -> None:
    """A queued run can be resumed only after its role chunk."""
    url = await processes.frontend()
    _, created = await client.post(url, background(["say", 1]))
    status, body = await client.get(url, created["id"], "?stream=true&starting_after=1-1")
    assert (status, body["error"]["param"]) == (400, "starting_after")
    async with client.streaming(url, run_id=created["id"], query="?stream=true&starting_after=0-0") as stream:
        await processes.worker(AGENT)
        assert texts(decode(await stream.rest())) == ["0 \u00fc\u2028\n"]


async def test_a_trimmed_log_gets_410(processes: Processes, client: Client, tmp_path: Path) -> None:
    """A run larger than its replay log reaches its reader completely, and a client that resumes it later gets 410."""
    urls = await asyncio.gather(processes.frontend(), processes.frontend())
    await processes.worker(AGENT, **SMALL_LOG)
    gate = tmp_path / "gate"
    pieces, piece_characters = 250, 4096
    body = background(["flood", pieces, piece_characters], ["gate", str(gate)], ["say", 1])
    async with client.streaming(urls[0], body) as stream:
        first = await stream.until(b"\n\n")
        run_id = run_id_of(first)
        raw = first + await stream.until(b'"' + f"{pieces - 1:08}xx".encode())
        for cursor in (None, "0-0", "1-5", last_id(frames(raw))):
            query = resuming("named", cursor, by_header=False)["query"]
            status, refused = await client.get(urls[1], run_id, query)
            assert (status, refused["error"]["code"]) == (410, "stream_trimmed"), cursor
        assert (await client.get(urls[1], run_id))[0] == 410
        gate.touch()
        raw += await stream.rest()
    said = texts(decode(raw))
    assert [int(text[:8]) for text in said[:-1]] == list(range(pieces))
    assert sum(map(len, said[:-1])) == pieces * piece_characters
    assert raw.endswith(DONE)
    assert (await client.get(urls[1], run_id, "?stream=true"))[0] == 410


async def test_a_lost_log_gets_410_and_a_lost_run_404(
    processes: Processes, client: Client, broker: "redis.asyncio.Redis"
) -> None:
    """An ended run without its replay log gets 410, and without its hash, as after the TTL, it gets 404."""
    url = await processes.frontend()
    await processes.worker(AGENT)
    raw = await client.whole(url, background(["say", 5]))
    run_id = run_id_of(raw)
    for key in (Keys().events(run_id), Keys().run(run_id)):
        assert 0 < await broker.ttl(key) <= 3600
    await broker.delete(Keys().events(run_id))
    for query in ("", "?stream=true", "?stream=true&starting_after=1-3"):
        status, refused = await client.get(url, run_id, query)
        assert (status, refused["error"]["code"]) == (410, "stream_trimmed"), query
    await broker.delete(Keys().run(run_id))
    for query in ("", "?stream=true", "?stream=true&starting_after=1-3"):
        status, refused = await client.get(url, run_id, query)
        assert (status, refused["error"]["code"]) == (404, "not_found"), query
    assert (await client.call("POST", f"{url}{PATH}/{run_id}/cancel"))[0] == 404


async def test_a_run_belongs_to_the_key_that_created_it(processes: Processes, client: Client) -> None:
    """Another key that resumes, retrieves or cancels a run gets 404 as for an unknown run, and no key gets 401."""
    urls = await asyncio.gather(*(processes.frontend(AGENTSTREAM_API_KEYS="sk-one,sk-two") for _ in range(2)))
    owner, other = client.using("sk-one"), client.using("sk-two")
    _, created = await owner.post(urls[0], background(["say", 2]))
    run_id = created["id"]
    never_was = "chatcmpl-" + "0" * 32
    for stranger, status in ((other, 404), (client, 401), (client.using("sk-three"), 401)):
        for method, tail in (("GET", ""), ("GET", "?stream=true"), ("POST", "/cancel")):
            answer = await stranger.call(method, f"{urls[1]}{PATH}/{run_id}{tail}")
            assert answer[0] == status, (method, tail)
            unknown = await stranger.call(method, f"{urls[1]}{PATH}/{never_was}{tail}")
            assert str(answer).replace(run_id, never_was) == str(unknown)
    assert (await owner.get(urls[1], run_id)) == (200, created)
    await processes.worker(AGENT)
    assert (await settled(owner, urls[1], run_id))["status"] == "completed"


async def test_ids_are_random_and_forged_ids_are_unknown(processes: Processes, client: Client) -> None:
    """Ids are 128 random bits in hex, and any other id gets 404."""
    url = await processes.frontend()
    ids = {(await client.post(url, background(["say", 1])))[1]["id"] for _ in range(20)}
    assert len(ids) == 20
    assert all(RUN_ID.fullmatch(run_id) for run_id in ids)
    assert len({run_id[9:13] for run_id in ids}) > 10
    run_id = ids.pop()
    for forged in (
        run_id.upper(), run_id[:-1], run_id + "0", run_id[9:], f"{run_id}%0A", f"{run_id}%00", "*", "{x}", "%7Bx%7D",
        "chatcmpl-" + "\uff10" * 32, "..%2F" + run_id, "a" * 5000,
    ):  # fmt: skip
        for method, tail in (("GET", ""), ("GET", "?stream=true"), ("POST", "/cancel")):
            status, body = await client.call(method, f"{url}{PATH}/{forged}{tail}")
            assert (status, body["error"]["code"]) == (404, "not_found"), forged
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", run_id)
