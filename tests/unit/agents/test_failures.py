"""The failure code and status of an exception that ends a run come from its class, never from its text."""

import asyncio

import httpx2
import openai
import pytest

from agentstream.agents.failures import describe_failure
from agentstream.engines.base import EngineError
from agentstream.errors import SERVICE_CODES, AgentError, InvalidAgentOutput, failure_status, failure_text, failure_type

REQUEST = httpx2.Request("POST", "http://model/v1")
TEXTS = [
    "order 14005 not found",
    "failed to connect to 10.0.0.5:4001",
    "file is too long for 4001",
    "Error code: 400 - no",
    "HTTP 400: the prompt is too long",
    "the maximum context length is 8",
]


def answered(status: int, text: str = "no", code: str | None = None) -> openai.APIStatusError:
    """Return the exception of the openai client for an error answer."""
    response = httpx2.Response(status, request=REQUEST)
    return openai.APIStatusError(text, response=response, body={"code": code, "message": text})


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", [RuntimeError, ValueError, OSError, AgentError])
def test_the_text_of_an_exception_does_not_choose_the_code(kind: type[Exception], text: str) -> None:
    """Whatever number the text of an agent's exception contains, the run fails with agent_error and status 500."""
    code, message, status = describe_failure(kind(text))
    assert (code, message, failure_status(code, status)) == ("agent_error", text, 500)
    assert failure_type(code, status) == "server_error"


@pytest.mark.parametrize(
    ("exc", "code", "status", "kind"),
    [
        (AgentError("x", code="quota_exceeded", status=429), "quota_exceeded", 429, "rate_limit_error"),
        (AgentError("x", status=404), "agent_error", 404, "invalid_request_error"),
        (AgentError("x", code="no_such_order"), "no_such_order", 500, "server_error"),
        (AgentError("x", code="context_length_exceeded"), "context_length_exceeded", 400, "invalid_request_error"),
        (InvalidAgentOutput("x"), "invalid_agent_output", 500, "server_error"),
        (EngineError("x"), "model_error", 502, "server_error"),
        (EngineError("the context window is full"), "context_length_exceeded", 400, "invalid_request_error"),
        (EngineError("x", code="model_error", status=400), "model_error", 400, "invalid_request_error"),
        (answered(400), "model_error", 400, "invalid_request_error"),
        (answered(400, "too long"), "context_length_exceeded", 400, "invalid_request_error"),
        (answered(400, code="context_length_exceeded"), "context_length_exceeded", 400, "invalid_request_error"),
        (answered(401), "model_error", 502, "server_error"),
        (answered(429), "model_error", 429, "rate_limit_error"),
        (answered(500, "order 4001"), "model_error", 502, "server_error"),
        (openai.APIConnectionError(request=REQUEST), "model_error", 502, "server_error"),
        (openai.APITimeoutError(request=REQUEST), "model_error", 504, "server_error"),
        (openai.APIError("in the stream", REQUEST, body=None), "model_error", 502, "server_error"),
        (ExceptionGroup("tasks", [answered(400)]), "model_error", 400, "invalid_request_error"),
    ],
)
def test_the_class_of_an_exception_chooses_code_and_status(exc: Exception, code: str, status: int, kind: str) -> None:
    """Errors of agents, engines and clients for model servers give their own code, status and error type."""
    got, _, own_status = describe_failure(exc)
    assert (got, failure_status(got, own_status), failure_type(got, own_status)) == (code, status, kind)


class _OddError(BaseException):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize("exc", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()])
def test_a_control_exception_is_named(exc: BaseException) -> None:
    """An exception that would end a program is an error of the agent, with the name of its class."""
    assert describe_failure(exc) == ("agent_error", f"the agent raised {type(exc).__name__}", None)


def test_an_exception_whose_text_raises_is_described() -> None:
    """If the text of an exception cannot be read, the run fails with the name of the class."""
    assert describe_failure(_OddError()) == ("agent_error", "_OddError (its text cannot be read)", None)


@pytest.mark.parametrize("code", ["", "no spaces", "1st", "x" * 65, "line\n", *sorted(SERVICE_CODES)])
def test_a_malformed_or_reserved_code_is_refused(code: str) -> None:
    """AgentError refuses a code that is malformed or says what happens outside of the agent; an empty one is absent."""
    if not code:
        assert AgentError("x", code=code).code == "agent_error"
        return
    with pytest.raises(ValueError, match="malformed or reserved"):
        AgentError("x", code=code)


@pytest.mark.parametrize("status", [200, 302, 399, 600])
def test_a_status_that_is_no_error_is_refused(status: int) -> None:
    """AgentError refuses a status that is no HTTP error."""
    with pytest.raises(ValueError, match="from 400 to 599"):
        AgentError("x", status=status)


TOO_LONG = "The input is too long for the model's context window. Please try a shorter message."


@pytest.mark.parametrize(
    ("code", "text", "sentence"),
    [
        ("agent_error", "boom", "Sorry, an error occurred: boom"),
        ("agent_error", "order 14005", "The model returned an error: order 14005"),
        ("agent_error", "HTTP 400: Too Long", TOO_LONG),
        ("agent_error", "the context length is 8", TOO_LONG),
        ("model_error", "Error code: 400 - no", "The model returned an error: Error code: 400 - no"),
        ("model_error", "Error code: 500 - no", "Sorry, an error occurred: Error code: 500 - no"),
        ("context_length_exceeded", "the context size is 8", TOO_LONG),
        ("run_timeout", "the run took longer than 400 s", "Sorry, an error occurred: the run took longer than 400 s"),
        ("quota_exceeded", "400 of 400 used", "Sorry, an error occurred: 400 of 400 used"),
    ],
)
def test_the_sentence_keeps_the_rule_of_the_original(code: str, text: str, sentence: str) -> None:
    """For errors of the agent and the model the text chooses the sentence, as in the original bridge."""
    assert failure_text(code, text) == sentence
