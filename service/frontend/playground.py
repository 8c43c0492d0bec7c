"""The playground page at ``/``: static files, nothing fetched from elsewhere."""

from importlib.resources import files
from typing import Final

from aiohttp import web

_CONTENT_TYPES: Final = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def _file(name: str) -> web.RouteDef:
    content = files("service.frontend").joinpath("page", name).read_bytes()
    content_type = _CONTENT_TYPES[name.rpartition(".")[2]]

    async def handler(_request: web.Request) -> web.Response:
        return web.Response(body=content, content_type=content_type, charset="utf-8", headers=_HEADERS)

    return web.get("/" if name == "index.html" else f"/page/{name}", handler)


def routes() -> list[web.RouteDef]:
    """Return the page's routes; its files are read once."""
    return [_file(name) for name in ("index.html", "app.js", "style.css")]
