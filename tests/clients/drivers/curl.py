"""curl, used as in a shell script."""

import json
import subprocess
from typing import Any

from reporting import BASE_URL, CANCEL_AFTER_PIECES, Observation, counts, drive, mode

ANY_RELEASE = "any"  # curl comes from the machine and is not pinned


def command(asked: str, **more: Any) -> list[str]:
    body = {"model": "m1", "messages": [{"role": "user", "content": asked}], **more}
    url = f"{BASE_URL}/v1/chat/completions"
    return ["curl", "-sSN", url, "-H", "Content-Type: application/json", "-d", json.dumps(body)]


def streamed(seen: Observation, asked: str, *, enough: int | None = None, **more: Any) -> None:
    """Read line by line, as a script would. To stop, terminate curl."""
    with subprocess.Popen(command(asked, stream=True, **more), stdout=subprocess.PIPE, text=True) as curl:
        assert curl.stdout is not None
        last = ""
        for line in curl.stdout:
            name, _, last = line.rstrip("\n").partition(": ")
            if name != "data" or last == "[DONE]":
                continue
            chunk = json.loads(last)
            for choice in chunk["choices"]:
                seen.add(choice["delta"].get("content"))
                seen.record(finish=choice["finish_reason"])
            seen.record(usage=counts(chunk.get("usage")))
            if seen.pieces == enough:
                curl.terminate()
                return
    assert curl.returncode == 0


@mode("loop")
def loop(seen: Observation) -> None:
    streamed(seen, "streamed")


@mode("safe")
def safe(seen: Observation) -> None:
    streamed(seen, "replayed", stream_options={"include_usage": True})


@mode("whole")
def whole(seen: Observation) -> None:
    answer = subprocess.run(command("streamed"), stdout=subprocess.PIPE, check=True, timeout=60)
    completion = json.loads(answer.stdout)
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
    drive(ANY_RELEASE)
