"""The route of the older completions API: one prompt, one text."""

from collections.abc import Awaitable
from typing import Final

from aiohttp import web

from agentstream.frontend.api.admission import Order, answer_with, place_order
from agentstream.frontend.api.negotiation import stream_options
from agentstream.frontend.api.parsing import read_request
from agentstream.frontend.context import Context
from agentstream.protocol.completions import CompletionRequest
from agentstream.stream.views import TEXT


def create_completion(request: web.Request) -> Awaitable[web.StreamResponse]:
    """POST /v1/completions: the same for a prompt; agent events are sent only if asked for."""
    return answer_with(request, _take_prompt)


async def _take_prompt(request: web.Request, context: Context, owner: str) -> Order:
    asked = await read_request(request, context.settings, CompletionRequest)
    options = stream_options(request, include_usage=asked.include_usage, unasked="off")
    return await place_order(request, asked.as_chat(), owner, options, TEXT)


ROUTES: Final = [
    web.post("/v1/completions", create_completion),
]
