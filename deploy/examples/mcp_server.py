"""An MCP server with one tool; mcp.json starts it. Install it: pip install 'agentstream[mcp]'."""

from mcp.server import MCPServer

server = MCPServer("weather")


@server.tool()
def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


if __name__ == "__main__":
    server.run()
