"""The tools of MCP servers, through the official client. A server is a child process or uses streamable HTTP.

A file lists the servers, in the format that other MCP clients read::

    {"mcpServers": {"files": {"command": "npx", "args": ["-y", "..."], "env": {"TOKEN": "${TOKEN}"}},
                    "search": {"url": "https://.../mcp", "headers": {"Authorization": "Bearer ${TOKEN}"}}}}

The model sees a tool as ``<server>__<tool>``. If a server is not reachable or ends, it is connected again, with
growing delays. Meanwhile its tools return an error, which the model reads.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import httpx2
from mcp import Client, MCPError, StdioServerParameters, stdio_client, types
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CONNECTION_CLOSED, INVALID_PARAMS
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from agentstream.engines.proxies import proxy_of, unusable_proxy
from agentstream.errors import StartupError, explain_file_error
from agentstream.processes.launcher import die_with_parent
from agentstream.telemetry.masking import mask_error, register_secrets
from agentstream.tools.base import Tool, ToolError

CONNECT_TIMEOUT_S: Final = 10.0  # for opening a session; `npx` may need longer to download, and is then retried
FIRST_RETRY_DELAY_S: Final = 0.5
MAX_RETRY_DELAY_S: Final = 30.0
STABLE_S: Final = 30.0  # after a session of this length the delays start again at the first
CLOSE_TIMEOUT_S: Final = 8.0  # the client needs up to 6 s to end a process that does not stop
MAX_TOOLS: Final = 500  # of one server; models cannot choose from more
MAX_NAME_CHARS: Final = 64  # OpenAI's limit for the name of a function
MIN_URL_KEY_CHARS: Final = 16  # shorter parts of an address are words

log = logging.getLogger(__name__)
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SECRET_NAME: Final = re.compile(r"(?i)key|token|secret|pass|auth|credential")
_DIGIT: Final = re.compile(r"\d")


def _header_value(value: str) -> str:
    """Return a header's value without whitespace around it. The error about a wrong character does not quote it."""
    value = value.strip()
    at = next((at for at, char in enumerate(value, 1) if not (char == "\t" or " " <= char <= "~")), None)
    if at is not None:
        message = (
            f"character {at} cannot be part of a header (a line end, a control character or one that is not ASCII)"
        )
        raise ValueError(message)
    return value


class McpServerConfig(BaseModel):
    """One entry of ``mcpServers``. Unknown keys, which other clients use, are ignored."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    command: str | None = None
    args: list[str] = Field(default_factory=list)
    env: dict[str, str] = Field(default_factory=dict)
    cwd: str | None = None
    url: str | None = None
    headers: dict[str, Annotated[str, AfterValidator(_header_value)]] = Field(default_factory=dict)
    type: str | None = None
    disabled: bool = False

    @model_validator(mode="after")
    def _one_way_to_reach_it(self) -> Self:
        if (self.command is None) == (self.url is None):
            message = "needs either a command or a url"
            raise ValueError(message)
        if self.url is not None and not self.url.lower().startswith(("http://", "https://")):
            message = "the url must begin with http:// or https://"
            raise ValueError(message)
        if self.type == "sse":
            message = 'type "sse" is not supported; use the server\'s address for streamable HTTP'
            raise ValueError(message)
        return self


def read_servers(path: str) -> dict[str, McpServerConfig]:
    """Read the file of servers, without the disabled ones. ``${NAME}`` stands for an environment variable.

    Raises StartupError with the path and the reason if the file cannot be read, an entry is invalid, a variable is
    not set or a command is not on PATH.
    """
    try:
        entries = json.loads(Path(path).read_bytes())["mcpServers"]
        servers = {
            str(name): McpServerConfig.model_validate(_expand_variables(entry)) for name, entry in entries.items()
        }
    except OSError as exc:
        message = f"MCP servers in {path}: {explain_file_error(path, exc)}"
        raise StartupError(message) from exc
    except ValidationError as exc:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'entry'}: {e['msg']}" for e in exc.errors())
        message = f"MCP servers in {path}: {reasons}"
        raise StartupError(message) from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        message = f'MCP servers in {path}: {exc!r}; expected {{"mcpServers": {{name: {{"command" or "url": ...}}}}}}'
        raise StartupError(message) from exc
    for name, server in servers.items():
        if server.command is not None and not server.disabled and shutil.which(server.command) is None:
            message = f"MCP server {name!r} in {path}: no program {server.command!r} on PATH"
            raise StartupError(message)
    used = {name: server for name, server in servers.items() if not server.disabled}
    if any(server.url for server in used.values()) and (fault := unusable_proxy()):
        raise StartupError(fault)
    for server in used.values():
        register_secrets(_secrets_of(server))
    return used


def _secrets_of(server: McpServerConfig) -> Iterator[str]:
    """Yield the keys and passwords of an entry, which no error, event or log line may show."""
    for value in server.headers.values():
        yield value
        yield value.partition(" ")[2]  # without a scheme such as Bearer
    yield from (value for name, value in server.env.items() if _SECRET_NAME.search(name))
    if server.url:
        parts = urlsplit(server.url)
        yield from (parts.password or "", unquote(parts.password or ""), parts.query)
        yield from (value for _, value in parse_qsl(parts.query) if len(value) >= MIN_URL_KEY_CHARS)
        # Some services give each user an address with a key as a part of the path.
        yield from (part for part in parts.path.split("/") if len(part) >= MIN_URL_KEY_CHARS and _DIGIT.search(part))


def _expand_variables(value: Any) -> Any:  # noqa: ANN401 -- JSON
    """Replace ``${NAME}`` in the strings of a JSON value; raises ValueError if the variable is not set."""
    if isinstance(value, dict):
        return {key: _expand_variables(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand_variables(item) for item in value]
    if not isinstance(value, str):
        return value
    filled = _VARIABLE.sub(lambda match: os.path.expandvars(match[0]), value)
    if (unset := _VARIABLE.search(filled)) is not None:
        message = f"the environment variable {unset[1]} is not set"
        raise ValueError(message)
    return filled


def _absolute(command: str) -> str:
    """Return the path of a program. Links are not resolved, because a program may depend on the link's name."""
    return os.path.abspath(shutil.which(command) or command)  # noqa: PTH100 -- Path.absolute keeps "..", resolve follows links


class McpServers:
    """The sessions with all MCP servers, from ``start`` to ``close``."""

    def __init__(self, servers: dict[str, McpServerConfig]) -> None:
        """Prepare the connections; ``start`` opens them."""
        self._connections = [_Connection(name, config) for name, config in servers.items()]

    async def start(self) -> None:
        """Connect to all servers concurrently. Return when each is connected or its first attempt has failed.

        An attempt takes at most ``CONNECT_TIMEOUT_S``.
        """
        for connection in self._connections:
            connection.start()
        await asyncio.gather(*(connection.first_attempt_done.wait() for connection in self._connections))

    def tools(self) -> list[Tool]:
        """Return the tools of all servers that have been connected at least once. Each tool has a different name."""
        tools: list[Tool] = []
        taken: set[str] = set()
        for connection in self._connections:
            for tool in connection.listed:
                name = _free_name(f"{connection.name}__{tool.name}", taken)
                taken.add(name)
                tools.append(McpTool(name, tool, connection))
        return tools

    async def close(self) -> None:
        """Close all sessions and end all processes. It takes at most ``CLOSE_TIMEOUT_S``."""
        await asyncio.gather(*(connection.close() for connection in self._connections))


def _free_name(wanted: str, taken: set[str]) -> str:
    """Return the name with only the characters that OpenAI allows, and with a number if it is already taken."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", wanted)[:MAX_NAME_CHARS]
    number = 1
    while name in taken:
        number += 1
        ending = f"_{number}"
        name = re.sub(r"[^A-Za-z0-9_-]", "_", wanted)[: MAX_NAME_CHARS - len(ending)] + ending
    return name


class McpTool:
    """One tool of an MCP server, with the interface of ``Tool``."""

    def __init__(self, name: str, tool: types.Tool, connection: "_Connection") -> None:
        """``name`` is the tool's name for the model; ``tool`` is the server's description of it."""
        self.name = name
        self.description = tool.description or tool.title or tool.name
        self.parameters: dict[str, Any] = tool.input_schema
        hints = tool.annotations
        self.read_only = hints is not None and hints.read_only_hint is True
        self.idempotent = hints is not None and hints.idempotent_hint is True
        # MCP says that a tool may be destructive unless its server declares that it is not.
        self.destructive = not self.read_only and (hints is None or hints.destructive_hint is not False)
        self._tool_name = tool.name
        self._connection = connection

    async def run(self, arguments: dict[str, Any]) -> str:
        """Call the tool. Raises ToolError if the server is not connected or refuses, or the tool reports an error."""
        result = await self._connection.call(self._tool_name, arguments)
        text = _as_text(result)
        if result.is_error:
            raise ToolError(text or "the tool failed and gave no reason")
        return text


def _as_text(result: types.CallToolResult) -> str:
    """Return the text of a result. Other content becomes a note with its type, for example ``[image: image/png]``."""
    parts: list[str] = []
    for block in result.content:
        if isinstance(block, types.TextContent):
            parts.append(block.text)
        elif isinstance(block, types.EmbeddedResource) and isinstance(block.resource, types.TextResourceContents):
            parts.append(block.resource.text)
        elif isinstance(block, types.ResourceLink):
            parts.append(str(block.uri))
        else:
            parts.append(f"[{block.type}: {getattr(block, 'mime_type', None) or 'no text'}]")
    if not parts and result.structured_content is not None:
        return json.dumps(result.structured_content)
    return "\n".join(parts)


class _Connection:
    """Keeps one server connected.

    One task opens and closes all its sessions, because the client must be closed by the task that opened it.
    """

    def __init__(self, name: str, config: McpServerConfig) -> None:
        self.name = name
        self.listed: Sequence[types.Tool] = ()  # of the latest session
        self.first_attempt_done = asyncio.Event()
        self._config = config
        self._client: Client | None = None
        self._reason = "no connection has been tried yet"
        self._lost = asyncio.Event()
        self._stop = asyncio.Event()
        self._connecting = False
        self._connection_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._connection_task = asyncio.create_task(self._run_sessions(), name=f"MCP server {self.name}")

    async def close(self) -> None:
        self._stop.set()
        self._lost.set()
        if self._connection_task is not None:
            if self._connecting:
                self._connection_task.cancel()
            _, late = await asyncio.wait({self._connection_task}, timeout=CLOSE_TIMEOUT_S)
            if late:
                log.warning("MCP server %s did not close within %g s; no longer waiting", self.name, CLOSE_TIMEOUT_S)
                self._connection_task.cancel()

    async def call(self, tool: str, arguments: dict[str, Any]) -> types.CallToolResult:
        """Call a tool in the current session. There is no time limit; the caller sets one."""
        client = self._client
        if client is None:
            message = f"the MCP server {self.name!r} is not connected ({self._reason}); connecting is retried"
            raise ToolError(message)
        try:
            return await client.call_tool(tool, arguments)
        except MCPError as exc:
            # HTTP has no error code for a lost session. So every error, except refused arguments, may mean a lost one.
            may_be_lost = self._config.url is not None and exc.error.code != INVALID_PARAMS
            if may_be_lost or exc.error.code == CONNECTION_CLOSED:
                self._mark_lost(client, exc)
            message = mask_error(f"the MCP server {self.name!r} failed: {exc}")
            raise ToolError(message) from exc

    def _through_proxy(self) -> str:
        proxy = proxy_of(self._config.url) if self._config.url else ""
        return f" (through the proxy {proxy})" if proxy else ""

    def _mark_lost(self, client: Client, reason: object) -> None:
        if self._client is client:
            self._client, self._reason = None, f"the session ended: {reason}"
            self._lost.set()

    async def _run_sessions(self) -> None:
        retry_delay_s = FIRST_RETRY_DELAY_S
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            began_s = loop.time()
            cause: BaseException | None = None
            try:
                await self._hold_session()
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise
                self._reason = "the session was cancelled"  # by one of the client's own task groups
            except Exception as exc:  # noqa: BLE001 -- a server, its pipe or its HTTP answers can cause any error
                cause = _cause(exc)
                self._reason = mask_error(f"{type(cause).__name__}: {cause}".rstrip(": ")) + self._through_proxy()
            self._client = None
            self.first_attempt_done.set()
            if self._stop.is_set():
                return
            if loop.time() - began_s > STABLE_S:
                retry_delay_s = FIRST_RETRY_DELAY_S
            # A stored reason is logged only up to its colon: the rest may contain a tool's arguments or an address
            # with a key.
            reason = cause or self._reason.partition(":")[0]
            log.warning("MCP server %s: %s; connecting again in %g s", self.name, reason, retry_delay_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), retry_delay_s)
            retry_delay_s = min(2 * retry_delay_s, MAX_RETRY_DELAY_S)

    async def _hold_session(self) -> None:
        """Connect, list the tools, and wait until the session is lost or ``close`` is called."""
        self._lost.clear()
        if self._stop.is_set():
            return
        async with contextlib.AsyncExitStack() as stack:
            self._connecting = True
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    client = await stack.enter_async_context(Client(self._transport()))
                    self.listed = await _all_tools(client)
            finally:
                self._connecting = False
            self._client, self._reason = client, ""
            log.info("MCP server %s: connected, with %d tools", self.name, len(self.listed))
            self.first_attempt_done.set()
            await self._lost.wait()
            self._client, self._reason = None, self._reason or "the server ended"

    @contextlib.asynccontextmanager
    async def _transport(self) -> AsyncIterator[Any]:
        config = self._config
        async with contextlib.AsyncExitStack() as stack:
            if config.command is not None:
                program, *arguments = die_with_parent(_absolute(config.command), *config.args)
                parameters = StdioServerParameters(command=program, args=arguments, env=config.env, cwd=config.cwd)
                reading, writing = await stack.enter_async_context(stdio_client(parameters, errlog=sys.stderr))
            else:
                http = await stack.enter_async_context(
                    httpx2.AsyncClient(headers=config.headers, timeout=httpx2.Timeout(CONNECT_TIMEOUT_S, read=None))
                )
                reading, writing = await stack.enter_async_context(
                    streamable_http_client(str(config.url), http_client=http)
                )
            yield _EndSignalingStream(reading, self._lost), writing


class _EndSignalingStream:
    """A session's incoming messages. It sets an event at the end of the stream, which the client does not report."""

    def __init__(self, messages: Any, ended: asyncio.Event) -> None:  # noqa: ANN401 -- the client's own
        self._messages = messages
        self._ended = ended

    async def __aenter__(self) -> Self:
        await self._messages.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._messages.__aexit__(*exc)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401 -- the client's own
        try:
            return await self._messages.__anext__()
        except BaseException:
            self._ended.set()
            raise

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- other attributes that the client uses
        return getattr(self._messages, name)


async def _all_tools(client: Client) -> list[types.Tool]:
    tools: list[types.Tool] = []
    cursor: str | None = None
    while len(tools) < MAX_TOOLS:
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if not cursor:
            break
    return tools[:MAX_TOOLS]


def _cause(exc: BaseException) -> BaseException:
    """Return the first exception inside nested exception groups, which task groups create."""
    while isinstance(exc, BaseExceptionGroup) and exc.exceptions:
        exc = exc.exceptions[0]
    return exc
