"""All routes of the HTTP server except those of the playground. To add an API, add its module and one line below."""

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
