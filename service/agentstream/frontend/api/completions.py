"""The route of the older completions API: one prompt, one text."""

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
    """POST /v1/completions: the same for a prompt; agent events are sent only if asked for."""
    return respond_with_run(request, _admit_completion)


async def _admit_completion(request: web.Request, context: Context, owner: str) -> AdmittedRun:
    asked = await read_request(request, context.settings, CompletionRequest)
    options = stream_options(request, include_usage=asked.include_usage, default_format="off")
    return await admit(request, asked.as_chat(), owner, options, COMPLETION_VIEW)


ROUTES: Final = [
    web.post("/v1/completions", create_completion),
]
