"""The pump, with a feed and a writer that the test controls."""

import asyncio
from typing import Any, cast

import pytest

from agentstream.errors import AGENT_ERROR, STREAM_LOST, LogTrimmed
from agentstream.frontend.runs.pump import EMPTY_CHUNK_AFTER_S, KEEPALIVE_AFTER_S, FlushScheduler, StreamPump
from agentstream.frontend.runs.raw_writer import HIGH_WATER_BYTES, ClientDisconnected, RawWriter
from agentstream.frontend.runs.watcher import Deadlines
from agentstream.protocol.events import RUN_FAILED, Cursor
from agentstream.store.bus.feed import RunFeed
from agentstream.stream import sse
from agentstream.stream.chat import ChatStream, StreamOptions
from tests.helpers import TIMEOUT_S, batch, completed, decode, events, texts
from tests.unit.frontend.fakes import HEAD, FakeDeadlines, FakeFeed, FakeWriter, said


class Scene:
    """A running pump between a fake feed and a fake writer."""

    def __init__(
        self,
        *,
        replay_word_delay_ms: int = 0,
        flush_scheduler: FlushScheduler | None = None,
        after: Cursor | None = None,
    ) -> None:
        self.writer, self.feed, self.deadlines = FakeWriter(), FakeFeed(), FakeDeadlines()
        self.pump = StreamPump(
            ChatStream(HEAD, StreamOptions(), after),
            cast("RawWriter", self.writer),
            flush_scheduler or FlushScheduler(),
            replay_word_delay_ms=replay_word_delay_ms,
        )
        self.pump.attach(cast("RunFeed", self.feed), cast("Deadlines", self.deadlines))
        self.started_s = asyncio.get_running_loop().time()
        self.running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.running = asyncio.create_task(self.pump.run())
        await self.turns()

    async def turns(self) -> None:
        """Let the event loop run all callbacks and tasks that are ready."""
        for _ in range(5):
            await asyncio.sleep(0)

    async def ended(self) -> list[tuple[str | None, Any]]:
        """Return the whole stream after it has ended as complete."""
        assert self.running is not None
        async with asyncio.timeout(TIMEOUT_S):
            await self.running
        assert self.writer.ended
        return decode(self.writer.sent)


async def test_the_role_chunk_is_written_before_any_event() -> None:
    """The role chunk is written right after the headers."""
    scene = Scene()
    await scene.start()
    assert decode(scene.writer.sent)[0][1]["choices"][0]["delta"] == {"role": "assistant"}


async def test_events_that_come_before_the_headers_follow_the_role_chunk() -> None:
    """Events that arrive before the headers are sent are written in order after the role chunk."""
    scene = Scene()
    scene.pump.on_batch(batch(said("a", "b")))
    assert scene.writer.sent == b""
    await scene.start()
    scene.pump.on_batch(batch(events(completed(), first_seq=3)))
    messages = await scene.ended()
    assert "role" in messages[0][1]["choices"][0]["delta"]
    assert texts(messages) == ["a", "b"]


async def test_a_resumed_stream_has_no_role_chunk() -> None:
    """A resumed stream begins with the first frame after the cursor, even if events arrive before the headers."""
    scene = Scene(after=Cursor(1, 1))
    scene.pump.on_batch(batch(said("a", "b")))
    await scene.start()
    scene.pump.on_batch(batch(events(completed(), first_seq=3)))
    messages = await scene.ended()
    assert texts(messages) == ["b"]
    assert messages[0][1]["choices"][0]["delta"] == {"content": "b"}


async def test_each_stream_writes_once_per_turn() -> None:
    """Each stream writes the frames of all batches in one turn of the event loop with one write at its end."""
    flush_scheduler = FlushScheduler()
    scenes = [Scene(flush_scheduler=flush_scheduler) for _ in range(3)]
    for scene in scenes:
        await scene.start()
    before = [len(scene.writer.writes) for scene in scenes]
    for seq in (1, 3, 5):
        for scene in scenes:
            scene.pump.on_batch(batch(said(str(seq), str(seq + 1), first_seq=seq)))
    assert [len(scene.writer.writes) for scene in scenes] == before
    await asyncio.sleep(0)
    assert [len(scene.writer.writes) for scene in scenes] == [count + 1 for count in before]
    for scene in scenes:
        assert texts(decode(scene.writer.writes[-1])) == [str(number) for number in range(1, 7)]


async def test_a_stream_that_cannot_be_written_does_not_stop_the_others() -> None:
    """An error in the write of one stream ends that stream with an error frame; the other streams continue."""
    flush_scheduler = FlushScheduler()
    first, broken, last = (Scene(flush_scheduler=flush_scheduler) for _ in range(3))
    for scene in (first, broken, last):
        await scene.start()
    broken.writer.broken = True
    for scene in (first, broken, last):
        scene.pump.on_batch(batch(said("a")))
    await asyncio.sleep(0)
    assert texts(decode(first.writer.sent)) == texts(decode(last.writer.sent)) == ["a"]
    broken.writer.broken = False
    messages = await broken.ended()
    assert messages[-2][1]["agent_error"]["code"] == STREAM_LOST
    assert not broken.pump.ended
    for scene in (first, last):
        scene.pump.on_batch(batch(events(completed(), first_seq=2)))
        assert texts(await scene.ended()) == ["a"]


async def test_many_bytes_are_written_before_the_end_of_the_turn() -> None:
    """Frames above the high-water mark are written before the turn ends, and a blocked client's feed is paused."""
    scene = Scene()
    await scene.start()
    before = len(scene.writer.writes)
    scene.writer.block()
    scene.pump.on_batch(batch(said("x" * HIGH_WATER_BYTES)))
    assert len(scene.writer.writes) == before + 1
    assert scene.feed.calls == ["pause"]
    scene.writer.unblock()
    await scene.turns()
    for seq in range(2, 42):
        scene.pump.on_batch(batch(said("y" * (HIGH_WATER_BYTES // 4), first_seq=seq)))
    assert len(scene.writer.writes) >= before + 10
    assert max(map(len, scene.writer.writes)) < 2 * HIGH_WATER_BYTES
    scene.pump.on_batch(batch(events(completed(), first_seq=42)))
    assert len(texts(await scene.ended())) == 41


async def test_text_in_the_terminal_events_batch_comes_before_its_frames() -> None:
    """Text in the batch of the terminal event is written before its frames, and nothing is written after [DONE]."""
    scene = Scene()
    await scene.start()
    scene.pump.on_batch(batch([*said("a"), *events(completed(), first_seq=2)]))
    assert scene.pump.ended
    scene.pump.on_batch(batch(said("late", first_seq=3)))
    scene.pump.tick(scene.started_s + 100)
    messages = await scene.ended()
    assert texts(messages) == ["a"]
    assert messages[-1] == (None, "[DONE]")


async def test_a_blocked_client_pauses_its_feed_and_an_unblocked_one_resumes_it() -> None:
    """The feed is paused once when the client is blocked, and resumed when the client has read enough."""
    scene = Scene()
    await scene.start()
    scene.writer.block()
    scene.pump.on_batch(batch(said("a")))
    await scene.turns()
    assert scene.feed.calls == ["pause"]
    scene.pump.tick(scene.started_s + EMPTY_CHUNK_AFTER_S)
    assert texts(decode(scene.writer.sent)) == ["a"]
    assert sse.KEEPALIVE not in scene.writer.sent
    scene.writer.unblock()
    await scene.turns()
    assert scene.feed.calls == ["pause", "resume"]
    scene.pump.on_batch(batch([*said("b", first_seq=2), *events(completed(), first_seq=3)]))
    assert texts(await scene.ended()) == ["a", "b"]


async def test_a_long_replay_log_is_paused_before_the_headers() -> None:
    """If more than the high-water mark arrives before the headers are sent, the feed is paused until they are."""
    scene = Scene()
    scene.pump.on_batch(batch(said("x" * (HIGH_WATER_BYTES // 2))))
    assert scene.feed.calls == []
    scene.pump.on_batch(batch(said("y" * HIGH_WATER_BYTES, first_seq=2)))
    assert scene.feed.calls == ["pause"]
    await scene.start()
    assert scene.feed.calls == ["pause", "resume"]
    scene.pump.on_batch(batch(events(completed(), first_seq=3)))
    assert [len(text) for text in texts(await scene.ended())] == [HIGH_WATER_BYTES // 2, HIGH_WATER_BYTES]


async def test_a_client_that_disconnects_ends_the_pump() -> None:
    """The pump raises ClientDisconnected, and does not end the body as complete."""
    scene = Scene()
    await scene.start()
    scene.writer.block()
    scene.pump.on_batch(batch(said("a")))
    await scene.turns()
    scene.writer.gone = True
    scene.writer.unblock()
    assert scene.running is not None
    with pytest.raises(ClientDisconnected):
        await scene.running
    assert not scene.writer.ended
    assert not scene.pump.ended


async def test_the_tail_is_written_as_fast_as_the_client_reads() -> None:
    """While the client is blocked, at most one block of a long replayed answer is written ahead."""
    scene = Scene()
    await scene.start()
    scene.writer.block()
    scene.pump.on_batch(batch(events(completed("w " * 20_000))))
    async with asyncio.timeout(TIMEOUT_S):
        await scene.writer.waited_blocked.wait()
    assert len(scene.writer.sent) < HIGH_WATER_BYTES
    scene.writer.unblock()
    messages = await scene.ended()
    assert "".join(texts(messages)) == "w " * 20_000
    assert max(map(len, scene.writer.writes)) < HIGH_WATER_BYTES


async def test_replayed_words_are_paced_and_failures_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a replay word delay, a pause follows each frame of a completed run, but no frame of a failed run."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def note(delay_s: float) -> None:
        pauses.append(delay_s)
        await sleep(0)

    for fact, expected in (
        (completed("a b c"), [0.25] * 5),  # three words, the final chunk, [DONE]
        ((RUN_FAILED, {"code": AGENT_ERROR, "message": "no"}), []),
    ):
        scene = Scene(replay_word_delay_ms=250)
        await scene.start()
        with monkeypatch.context() as patched:
            patched.setattr(asyncio, "sleep", note)
            scene.pump.on_batch(batch(events(fact)))
            await scene.ended()
        assert pauses == expected
        pauses.clear()


async def test_silence_is_filled_with_keepalives_and_empty_chunks() -> None:
    """A comment is sent after 4 s without a byte and an empty chunk after 30 s without a chunk, both without an id."""
    scene = Scene()
    await scene.start()
    before = len(scene.writer.sent)
    for second in range(int(EMPTY_CHUNK_AFTER_S) + 1):
        scene.pump.tick(scene.started_s + second)
    filler = scene.writer.sent[before:]
    keepalives = filler.count(sse.KEEPALIVE)
    assert EMPTY_CHUNK_AFTER_S / KEEPALIVE_AFTER_S - 1 <= keepalives <= EMPTY_CHUNK_AFTER_S / (KEEPALIVE_AFTER_S - 1)
    assert b"id: " not in filler
    (empty,) = decode(filler)
    assert empty[1]["choices"] == [{"index": 0, "delta": {}, "finish_reason": None}]


async def test_a_silence_is_counted_from_the_tick_before_the_last_frame() -> None:
    """The silence is counted from the tick before the last frame, so a keepalive may be early but is never late."""
    scene = Scene()
    await scene.start()
    scene.pump.tick(scene.started_s + 1)
    scene.pump.on_batch(batch(said("a")))
    scene.pump.tick(scene.started_s + 2)
    assert scene.deadlines.received_s == [scene.started_s + 2]
    scene.pump.tick(scene.started_s + KEEPALIVE_AFTER_S - 1)
    assert sse.KEEPALIVE not in scene.writer.sent
    scene.pump.tick(scene.started_s + 1 + KEEPALIVE_AFTER_S)
    assert scene.writer.sent.count(sse.KEEPALIVE) == 1


async def test_events_without_frames_do_not_delay_a_keepalive() -> None:
    """If a run emits only events that are not sent, keepalives are still sent and the deadlines see the events."""
    scene = Scene()
    await scene.start()
    for second in range(1, int(KEEPALIVE_AFTER_S) + 1):
        scene.pump.on_batch(batch(events(("note", {}), first_seq=second)))
        scene.pump.tick(scene.started_s + second)
    assert scene.writer.sent.count(sse.KEEPALIVE) == 1
    assert len(scene.deadlines.received_s) == KEEPALIVE_AFTER_S
    assert len(scene.deadlines.started_s) == 1


async def test_nothing_is_written_before_the_headers() -> None:
    """A tick before the headers are sent writes nothing."""
    scene = Scene()
    scene.pump.tick(scene.started_s + 100)
    assert scene.writer.sent == b""


async def test_a_failed_feed_ends_the_stream_with_its_reason() -> None:
    """If the feed fails, the stream ends with a stream_lost frame, and the run does not count as ended."""
    scene = Scene()
    await scene.start()
    scene.pump.on_batch(batch(said("a")))
    scene.pump.on_failure(LogTrimmed("events 1-2 to 1-9 are no longer in the log"))
    scene.pump.on_failure(LogTrimmed("again"))
    messages = await scene.ended()
    assert messages[-2][1]["agent_error"]["code"] == STREAM_LOST
    assert "1-2 to 1-9" in messages[-2][1]["agent_error"]["message"]
    assert messages[-1] == (None, "[DONE]")
    assert not scene.pump.ended


async def test_an_expired_deadline_ends_the_stream() -> None:
    """When a deadline expires, the client gets one error frame with the code of the deadline."""
    scene = Scene()
    await scene.start()
    scene.deadlines.expired = ("queue_timeout", "no worker")
    scene.pump.tick(scene.started_s)
    scene.pump.tick(scene.started_s + 1)
    messages = await scene.ended()
    assert [data["agent_error"]["code"] for _, data in messages[1:-1]] == ["queue_timeout"]
    assert not scene.pump.ended


async def test_a_run_is_not_given_up_while_its_client_is_slow() -> None:
    """Deadlines are ignored while the feed is paused and extended when the client reads again."""
    scene = Scene()
    await scene.start()
    scene.writer.block()
    scene.pump.on_batch(batch(said("a")))
    await scene.turns()
    scene.deadlines.expired = (STREAM_LOST, "took too long")
    scene.pump.tick(scene.started_s + 1000)
    scene.writer.unblock()
    await scene.turns()
    scene.pump.tick(scene.started_s + 1001)
    scene.pump.on_batch(batch([*said("b", first_seq=2), *events(completed(), first_seq=3)]))
    messages = await scene.ended()
    assert texts(messages) == ["a", "b"]
    assert "agent_error" not in messages[-2][1]
