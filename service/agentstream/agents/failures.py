"""The failure code, text and HTTP status of an exception that ends a run. The class of the exception decides."""

import asyncio
from typing import Final

from agentstream.errors import (
    AGENT_ERROR,
    MODEL_ERROR,
    UPSTREAM_FAILED,
    UPSTREAM_TIMEOUT,
    AgentError,
    upstream_failure,
)

# Exceptions of clients for model servers: the class names, and the attribute with the HTTP status. They are recognised
# by name, because the worker does not import these packages. An agent may use a client that it does not depend on.
_STATUS_ATTRIBUTE: Final = {
    "APIStatusError": "status_code",  # openai, anthropic, groq and others of the same generator, and litellm
    "ModelHTTPError": "status_code",  # pydantic-ai
    "SDKError": "status_code",  # mistralai
    "ApiError": "status_code",  # cohere
    "ResponseError": "status_code",  # ollama
    "APIError": "code",  # google-genai
}
_PACKAGES: Final = frozenset(
    {"openai", "anthropic", "groq", "cerebras", "together", "litellm", "pydantic_ai", "mistralai", "cohere", "ollama"}
    | {"google"}
)
# Of these packages: exceptions without a status. The model server failed during its answer, or was not reached.
_WITHOUT_STATUS: Final = {
    "APITimeoutError": UPSTREAM_TIMEOUT,
    "APIConnectionError": UPSTREAM_FAILED,
    "APIError": UPSTREAM_FAILED,
    "ModelAPIError": UPSTREAM_FAILED,
}
_ERROR_STATUSES: Final = range(400, 600)


def describe_failure(exc: BaseException) -> tuple[str, str, int | None]:
    """Return failure code, message and HTTP status of an agent's exception. The status is None for that of the code.

    An exception group with one member, as a task group raises it, counts as this member.
    """
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    message = _text_of(exc)
    if isinstance(exc, AgentError):
        return exc.code, message, exc.status
    if isinstance(exc, SystemExit | KeyboardInterrupt | asyncio.CancelledError | GeneratorExit):
        return AGENT_ERROR, f"the agent raised {type(exc).__name__}", None
    code, status = _of_model_client(exc, message) or (AGENT_ERROR, None)
    return code, message, status


def _of_model_client(exc: BaseException, message: str) -> tuple[str, int] | None:
    """Return failure code and status if a client for a model server raised the exception; None otherwise."""
    names = [kind.__name__ for kind in type(exc).__mro__ if kind.__module__.partition(".")[0] in _PACKAGES]
    for name in names:
        status = getattr(exc, _STATUS_ATTRIBUTE.get(name, ""), None)
        if isinstance(status, int) and status in _ERROR_STATUSES:
            return upstream_failure(status, message, getattr(exc, "code", None))
        if name in _WITHOUT_STATUS:
            return MODEL_ERROR, _WITHOUT_STATUS[name]
    return None


def _text_of(exc: BaseException) -> str:
    try:
        return str(exc) or type(exc).__name__
    except Exception:  # noqa: BLE001 -- a class of the agent's may raise anything
        return f"{type(exc).__name__} (its text cannot be read)"
