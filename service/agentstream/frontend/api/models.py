"""The routes that list models."""

from typing import Any, Final

from aiohttp import web

from agentstream.errors import NotFound
from agentstream.frontend.context import CONTEXT
from agentstream.frontend.runs.guards import BrokerTimeout, require_broker


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models: the models that have a live worker."""
    names = await _available_models(request)
    return web.json_response({"object": "list", "data": [_model(name) for name in names]})


async def retrieve_model(request: web.Request) -> web.Response:
    """GET /v1/models/{id}: one model; 404 if it has no live worker."""
    name = request.match_info["model"]
    if name not in await _available_models(request):
        queue = request.app[CONTEXT].model_router.queue_of(name)
        message = f"the model {name[:80]!r} is not available now: its queue {queue!r} has no live worker; try again"
        raise NotFound(message, code="model_not_found", param="model")
    return web.json_response(_model(name))


async def _available_models(request: web.Request) -> list[str]:
    context = request.app[CONTEXT]
    context.authenticator.authenticate(request)
    require_broker(context)
    async with BrokerTimeout(context):
        return await context.model_router.available_models()


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "agentstream"}


ROUTES: Final = [
    web.get("/v1/models", list_models),
    web.get(r"/v1/models/{model:[\s\S]+}", retrieve_model),  # a name may contain slashes, encoded or not
]
