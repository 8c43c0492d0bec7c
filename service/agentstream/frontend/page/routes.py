"""The routes of the playground page at ``/``: static files that load nothing from other servers."""

from importlib.resources import files
from typing import Final

from aiohttp import web

_CONTENT_TYPES: Final = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
# The last two directives enable Trusted Types: a browser that supports them refuses to parse strings as HTML. The page
# does not need that: it creates elements and text nodes.
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_START: Final = "index.html"


def _file(name: str, content: bytes) -> web.RouteDef:
    content_type = _CONTENT_TYPES[name.rpartition(".")[2]]

    async def handler(_request: web.Request) -> web.Response:
        return web.Response(body=content, content_type=content_type, charset="utf-8", headers=_HEADERS)

    return web.get("/" if name == _START else f"/page/{name}", handler)


def routes() -> list[web.RouteDef]:
    """Read each file of the page once, and return one route for each file."""
    found = sorted(files("agentstream.frontend.page").joinpath("static").iterdir(), key=lambda file: file.name)
    return [_file(file.name, file.read_bytes()) for file in found]
