"""An MCP server for the tests; it uses standard input and output, or streamable HTTP if a port is given."""

import asyncio
import os
import sys

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations

server = MCPServer("test", log_level="ERROR")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool(name="get.pid", annotations=ToolAnnotations(idempotent_hint=True, destructive_hint=True))
def get_pid() -> str:
    """Return the server's process id."""
    return str(os.getpid())


@server.tool()
def fail() -> str:
    """Fail."""
    message = "out of order"
    raise ToolError(message)


@server.tool()
async def sleep(seconds: float) -> str:
    """Sleep."""
    await asyncio.sleep(seconds)
    return "slept"


@server.tool(annotations=ToolAnnotations(destructive_hint=False))
def environment() -> str:
    """Return the names and values of the environment."""
    return "\n".join(f"{name}={value}" for name, value in os.environ.items())


@server.tool()
def die() -> str:
    """End the server at once."""
    os._exit(1)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run()
