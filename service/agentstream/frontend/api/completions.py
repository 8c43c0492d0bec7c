"""The route of the older completions API: the request has one prompt, the answer is one text."""

from collections.abc import Awaitable
from typing import Final

from aiohttp import web

from agentstream.frontend.api.admission import AdmittedRun, admit, respond_with_run
from agentstream.frontend.api.negotiation import stream_options
from agentstream.frontend.api.parsing import read_request
from agentstream.frontend.context import Context
from agentstream.protocol.completions import CompletionRequest
from agentstream.stream.views import COMPLETION_VIEW


def create_completion(request: web.Request) -> Awaitable[web.StreamResponse]:
    """POST /v1/completions: enqueue a run for a prompt; stream it, or wait for its end.

    Agent events are sent only if the client asks for them. This is not a coroutine function: see
    ``create_chat_completion``.
    """
    return respond_with_run(request, _admit_completion)


async def _admit_completion(request: web.Request, context: Context, owner: str) -> AdmittedRun:
    completion_request = await read_request(request, context.settings, CompletionRequest)
    options = stream_options(request, include_usage=completion_request.include_usage, default_format="off")
    return await admit(request, completion_request.as_chat(), owner, options, COMPLETION_VIEW)


ROUTES: Final = [
    web.post("/v1/completions", create_completion),
]
