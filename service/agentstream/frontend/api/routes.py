"""Every route of the HTTP server except the playground's. A new API is a new module here and one line below."""

from typing import Final

from agentstream.frontend.api import chat, completions, health, models, openapi, responses

ROUTES: Final = [
    *chat.ROUTES,
    *completions.ROUTES,
    *responses.ROUTES,
    *models.ROUTES,
    *openapi.ROUTES,
    *health.ROUTES,
]
