"""Clients that ask one question after the other, and check every answer. Uses only the standard library.

    python -m tests.compose.load http://127.0.0.1:8000 --clients 12

It ends when its standard input ends: each client finishes its answer, and the program prints a report in JSON.
"""

import argparse
import collections
import contextlib
import http.client
import json
import sys
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 90
EVERY_NTH_WHOLE = 4  # every fourth question asks for an answer that is not streamed
WORDS = (20, 40)  # with 0.05 s each, an answer takes one to two seconds
LOST = "the worker was lost"
RETRY_S = 0.2
CONNECT_S = 60  # the longest time without a proxy that accepts connections


@dataclass
class Report:
    """What became of the requests. ``turned_away`` counts connections that nobody accepted; they are tried again."""

    outcomes: "collections.Counter[str]" = field(default_factory=collections.Counter)
    turned_away: int = 0
    failures: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: str, detail: str = "") -> None:
        """Count the outcome of a request."""
        with self.lock:
            self.outcomes[outcome] += 1
            if outcome != "whole" and len(self.failures) < 20:
                self.failures.append(f"{outcome}: {detail}"[:300])


class Stream:
    """What a client has received of a streamed answer."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.run = self.cursor = self.text = self.error = ""
        self.done = False

    def read(self, response: http.client.HTTPResponse) -> None:
        """Read frames until the response ends."""
        for line in _lines(response):
            if line.startswith("id:"):
                self.cursor = line[3:].strip()
            elif line == "data: [DONE]":
                self.done = True
            elif line.startswith("data: "):
                chunk = json.loads(line[6:])
                self.run = chunk.get("id") or self.run
                if "error" in chunk:
                    self.error = json.dumps(chunk["error"])
                for choice in chunk.get("choices", ()):
                    self.text += choice["delta"].get("content") or ""


def _lines(response: http.client.HTTPResponse) -> Iterator[str]:
    """Yield the lines. Unlike readline(), this raises if a chunked body is cut."""
    rest = b""
    while piece := response.read1(65536):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.decode()


class Client:
    """One client: it asks until ``stop`` is set."""

    def __init__(self, url: str, number: int, report: Report, stop: threading.Event) -> None:
        """Take the address of the proxy and where to report."""
        self._address = urllib.parse.urlsplit(url)
        self._number = number
        self._report = report
        self._stop = stop

    def ask_until_stopped(self) -> None:
        """Ask one question after the other."""
        count = self._number
        while not self._stop.is_set():
            count += 1
            words = WORDS[0] + count % (WORDS[1] - WORDS[0])
            question = f"{words} words, please: {uuid.uuid4().hex}"
            with self._report.lock:
                self._report.questions.append(question)
            expected = "".join(f"{number} " for number in range(words)) + question
            try:
                outcome, detail = self._ask_until_heard(question, expected, stream=count % EVERY_NTH_WHOLE != 0)
            except (OSError, http.client.HTTPException, ValueError) as exc:
                outcome, detail = "broken", f"{type(exc).__name__} {exc}"
            self._report.add(outcome, detail)
            if outcome != "whole":
                time.sleep(RETRY_S)

    def _ask_until_heard(self, question: str, expected: str, *, stream: bool) -> tuple[str, str]:
        """Ask; while the proxy takes no connection, or drops it without a byte of an answer, ask again.

        A proxy that restarts does that, and so does Docker in front of it. The counts of the agent show whether a
        question that was asked again had been heard before.
        """
        body = {"model": "agentstream", "stream": stream, "messages": [{"role": "user", "content": question}]}
        deadline = time.monotonic() + CONNECT_S
        while True:
            connection = http.client.HTTPConnection(str(self._address.hostname), self._address.port, timeout=TIMEOUT_S)
            with contextlib.closing(connection):
                try:
                    headers = {"Content-Type": "application/json"}
                    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
                    response = connection.getresponse()
                except (ConnectionError, http.client.RemoteDisconnected):
                    if time.monotonic() > deadline:
                        raise
                    with self._report.lock:
                        self._report.turned_away += 1
                    time.sleep(RETRY_S)
                else:
                    return self._read(response, expected, stream=stream)

    def _read(self, response: http.client.HTTPResponse, expected: str, *, stream: bool) -> tuple[str, str]:
        if response.status != http.HTTPStatus.OK:
            return f"http {response.status}", response.read().decode(errors="replace")
        received = Stream()
        if not stream:
            received.text = json.loads(response.read())["choices"][0]["message"]["content"]
            received.done = True
            return _judge(received, expected)
        try:
            received.read(response)
        except (OSError, http.client.HTTPException) as exc:
            return self._resume(received, expected, f"{type(exc).__name__} {exc}")
        if not received.done and not received.error:
            return self._resume(received, expected, "the stream ended without [DONE]")
        return _judge(received, expected)

    def _resume(self, received: Stream, expected: str, cut: str) -> tuple[str, str]:
        """Continue a stream that was cut, as a client of ours does."""
        if not received.cursor:
            return "broken", f"{cut}; nothing to resume"
        connection = http.client.HTTPConnection(str(self._address.hostname), self._address.port, timeout=TIMEOUT_S)
        with contextlib.closing(connection):
            path = f"/v1/chat/completions/{received.run}?stream=true"
            connection.request("GET", path, headers={"Last-Event-ID": received.cursor})
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                return "broken", f"{cut}; resuming: {response.status} {response.read().decode(errors='replace')}"
            received.read(response)
        outcome, detail = _judge(received, expected)
        return ("resumed", cut) if outcome == "whole" else (outcome, f"{cut}; resumed: {detail}")


def _judge(received: Stream, expected: str) -> tuple[str, str]:
    if received.error:
        return "error frame", received.error
    if LOST in received.text:
        return "told that the worker was lost", ""
    return ("whole", "") if received.done and received.text == expected else ("wrong text", received.text)


def ask_all(url: str, clients: int, stop: threading.Event) -> dict[str, Any]:
    """Run the clients until ``stop`` is set, and return the report."""
    report = Report()
    threads = [
        threading.Thread(target=Client(url, number, report, stop).ask_until_stopped) for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "outcomes": dict(report.outcomes),
        "turned_away": report.turned_away,
        "failures": report.failures,
        "questions": report.questions,
    }


def main() -> None:
    """Run the clients until the standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=12)
    options = parser.parse_args()
    stop = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    print(json.dumps(ask_all(options.url, options.clients, stop)))


if __name__ == "__main__":
    main()
