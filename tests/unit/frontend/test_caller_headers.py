"""The request headers that agents may see."""

from types import SimpleNamespace
from typing import cast

from aiohttp import web
from multidict import CIMultiDict

from agentstream.agents.caller import Caller, Headers
from agentstream.frontend.api.caller_headers import caller_headers
from agentstream.protocol.jobs import Job, new_run_id

HEADERS = CIMultiDict(
    [
        ("Authorization", "Bearer sk-marked"),
        ("x-user-id", "ada"),
        ("X-User-Id", "b\u00e5 \udcff"),  # aiohttp keeps bytes that are not UTF-8 like this
        ("X-Leak", "the key is sk-marked"),
        ("X-Other", "other"),
    ]
)
REQUEST = cast("web.Request", SimpleNamespace(headers=HEADERS))


def test_only_named_headers_are_picked() -> None:
    """Headers are picked by name in any case, repeated ones are joined, and bytes that are no text are replaced."""
    assert caller_headers(REQUEST, ["X-USER-ID", "X-Missing"]) == {"X-USER-ID": "ada, b\u00e5 \ufffd"}
    assert caller_headers(REQUEST, []) == {}


def test_a_header_with_the_key_is_left_out() -> None:
    """No header that contains the API key of the request reaches an agent."""
    assert caller_headers(REQUEST, ["X-Leak", "X-Other"]) == {"X-Other": "other"}


def test_headers_travel_in_the_envelope() -> None:
    """A job keeps the headers of its request through its JSON form and does not show them."""
    job = Job(run_id=new_run_id(), request={}, created=1, start_by=2.0, headers={"X-User-Id": "marked"})
    assert Job.decode(job.encode()).headers == {"X-User-Id": "marked"}
    assert "marked" not in repr(job)


def test_malformed_headers_do_not_refuse_a_job() -> None:
    """A job with malformed headers, or without any, as older front ends write it, still runs."""
    job = Job(run_id=new_run_id(), request={}, created=1, start_by=2.0)
    for headers, kept in ((b'{"a":1,"b":"c"}', {"b": "c"}), (b'["a"]', {}), (b"null", {})):
        assert Job.decode(job.encode().replace(b'"headers":{}', b'"headers":' + headers)).headers == kept
    assert Job.decode(job.encode().replace(b'"headers":{},', b"")).headers == {}


def test_names_are_found_in_any_case() -> None:
    """An agent finds a header in any spelling, and neither the headers nor the caller show a value."""
    headers = Headers({"X-User-Id": "marked"})
    assert headers["x-user-id"] == headers["X-USER-ID"] == headers.get("X-User-Id") == "marked"
    assert headers.get("X-Tenant") is None
    assert (list(headers), len(headers)) == (["x-user-id"], 1)
    assert "marked" not in repr(Caller(headers=headers))
