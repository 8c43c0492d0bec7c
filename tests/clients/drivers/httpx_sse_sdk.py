"""httpx-sse. Reads every message with its event name."""

import json
from importlib.metadata import version
from typing import Any

import httpx
from httpx_sse import connect_sse
from reporting import BASE_URL, CANCEL_AFTER_PIECES, Observation, counts, drive, mode


def streamed(
    seen: Observation, asked: str, *, skip_named: bool = False, enough: int | None = None, **more: Any
) -> None:
    """Stream with the default timeouts of httpx: 5 s without a byte."""
    body = {"model": "m1", "messages": [{"role": "user", "content": asked}], "stream": True, **more}
    with (
        httpx.Client() as client,
        connect_sse(client, "POST", f"{BASE_URL}/v1/chat/completions", json=body) as source,
    ):
        for message in source.iter_sse():
            if message.data == "[DONE]":
                return
            if skip_named and message.event != "message":
                continue
            chunk = json.loads(message.data)
            for choice in chunk["choices"]:
                seen.add(choice["delta"].get("content"))
                seen.record(finish=choice["finish_reason"])
            seen.record(usage=counts(chunk.get("usage")))
            if seen.pieces == enough:
                return
    message = "the stream ended without [DONE]"
    raise RuntimeError(message)


@mode("loop")
def loop(seen: Observation) -> None:
    streamed(seen, "streamed")


@mode("safe")
def safe(seen: Observation) -> None:
    streamed(seen, "replayed", skip_named=True, stream_options={"include_usage": True})


@mode("whole")
def whole(seen: Observation) -> None:
    body = {"model": "m1", "messages": [{"role": "user", "content": "streamed"}]}
    completion = httpx.post(f"{BASE_URL}/v1/chat/completions", json=body).json()
    seen.add(completion["choices"][0]["message"]["content"])
    seen.record(finish=completion["choices"][0]["finish_reason"], usage=counts(completion["usage"]))


@mode("tools")
def tools(seen: Observation) -> None:
    streamed(seen, "tools")


@mode("waits")
def waits(seen: Observation) -> None:
    streamed(seen, "waits")


@mode("error")
def error(seen: Observation) -> None:
    streamed(seen, "error")


@mode("silent")
def silent(seen: Observation) -> None:
    streamed(seen, "silent")


@mode("cancel")
def cancel(seen: Observation) -> None:
    streamed(seen, "slow", enough=CANCEL_AFTER_PIECES)


if __name__ == "__main__":
    drive(version("httpx-sse"))
