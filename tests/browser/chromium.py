"""Drives a real Chromium through its DevTools protocol.

Reference of the methods: https://chromedevtools.github.io/devtools-protocol/
"""

import asyncio
import base64
import contextlib
import itertools
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, Self

import aiohttp

from tests.helpers import TIMEOUT_S
from tests.processes import Process

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS: Final = (
    "--headless",
    "--no-sandbox",  # root cannot use the sandbox; the tests open only our own pages
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP *.test 127.0.0.1",  # for pages that are not served from this machine's own names
    "--remote-debugging-port=0",
)
KEY_CODES: Final = {"Enter": 13, "Escape": 27, "Tab": 9}


def find_chromium() -> str | None:
    """Return the path of an installed Chromium or Chrome, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class BrowserError(Exception):
    """A DevTools method failed, or a script threw."""


class Chromium:
    """A browser process and the connection that drives it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._tabs: dict[str, Tab] = {}
        self._reading = asyncio.create_task(self._read())

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, executable: str, profile: Path) -> AsyncIterator[Self]:
        """Run a browser with a new profile in the folder ``profile``."""
        process = Process(
            await asyncio.create_subprocess_exec(
                executable,
                *FLAGS,
                f"--user-data-dir={profile}",
                "about:blank",
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        )
        try:
            address = (await process.until(r"DevTools listening on (ws://\S+)", 3 * TIMEOUT_S))[1]
            async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
                browser = cls(socket)
                try:
                    yield browser
                finally:
                    await browser.stop_reading()
        finally:
            await process.stop()

    async def stop_reading(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def tab(self, url: str = "about:blank") -> "Tab":
        """Open a tab. Tabs of one origin share cookies and local storage, but not session storage."""
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        tab = self._tabs[session] = Tab(self, session)
        for domain in ("Page", "Runtime", "Log"):
            await tab.call(f"{domain}.enable")
        await tab.open(url)
        return tab

    async def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a DevTools method and return its result. Raises BrowserError if it fails."""
        number = next(self._numbers)
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = reply
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        await self._socket.send_str(json.dumps(message))
        async with asyncio.timeout(2 * TIMEOUT_S):
            return await reply

    async def _read(self) -> None:
        async for raw in self._socket:
            message = json.loads(raw.data)
            if "id" not in message:
                if tab := self._tabs.get(message.get("sessionId", "")):
                    tab.on_browser_event(message["method"], message["params"])
                continue
            reply = self._waiting.pop(message["id"])
            if reply.done():
                continue
            if "error" in message:
                reply.set_exception(BrowserError(message["error"]["message"]))
            else:
                reply.set_result(message["result"])


class Tab:
    """One tab. ``complaints`` collects errors, policy violations and dialogs of its pages."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser = browser
        self._session = session
        self._loaded = asyncio.Event()
        self.complaints: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return await self._browser.call(method, self._session, **parameters)

    def on_browser_event(self, method: str, params: dict[str, Any]) -> None:
        """Handle an event from the browser."""
        if method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif method == "Page.javascriptDialogOpening":
            self.complaints.append(f"dialog: {params['message']}")
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            entry = params["entry"]
            self.complaints.append(f"{entry['text']} {entry.get('url', '')}")

    async def open(self, url: str) -> None:
        """Open a URL and wait until the page has loaded. A URL that differs only in its fragment does not load."""
        self._loaded.clear()
        await self.call("Page.navigate", url=url)
        await self._load()

    async def reload(self) -> None:
        self._loaded.clear()
        await self.call("Page.reload")
        await self._load()

    async def _load(self) -> None:
        async with asyncio.timeout(2 * TIMEOUT_S):
            await self._loaded.wait()

    async def evaluate(self, script: str) -> Any:
        """Return the value of an expression as JSON. Awaits a promise. Raises BrowserError if the expression throws."""
        answer = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    async def until(self, condition: str, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until an expression about the page is true. Fails with the text of the page."""
        held = await self.evaluate(
            f"""new Promise((resolve) => {{
                const look = () => {{ if ({condition}) end(true); }};
                const observer = new MutationObserver(look);
                observer.observe(document, {{ subtree: true, childList: true, attributes: true, characterData: true }});
                const timer = setTimeout(() => end(false), {timeout_s * 1000});
                const end = (held) => {{ clearTimeout(timer); observer.disconnect(); resolve(held); }};
                look();
            }})"""
        )
        if not held:
            message = f"never true: {condition}\nthe page:\n{await self.evaluate('document.body.innerText')}"
            raise AssertionError(message)

    async def text(self, selector: str) -> str:
        """Return the text of the last matching element."""
        return str(await self.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].at(-1).textContent"))

    async def texts(self, selector: str) -> list[str]:
        found = await self.evaluate(
            f"[...document.querySelectorAll({json.dumps(selector)})].map((found) => found.textContent)"
        )
        return [re.sub(r"\s+", " ", text).strip() for text in found]

    async def click(self, selector: str) -> None:
        """Click the last matching element."""
        await self.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].at(-1).click()")

    async def type(self, selector: str, text: str) -> None:
        """Insert a text into a field, as typing does."""
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.call("Input.insertText", text=text)

    async def press(self, key: str, *, key_code: int | None = None, modifiers: int = 0) -> None:
        """Press a key in the focused element. ``key_code`` is 229 for a key that goes to the input method."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" and key_code is None else {}
            code = KEY_CODES[key] if key_code is None else key_code
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                modifiers=modifiers,
                **text,
            )

    async def tap(self, selector: str) -> None:
        """Click the middle of the first matching element with the mouse, as a user does."""
        x, y = await self.evaluate(
            f"""(() => {{
                const box = document.querySelector({json.dumps(selector)}).getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def before_load(self, script: str) -> None:
        """Run a script in each page that this tab opens from now on, before the scripts of the page."""
        await self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    async def show(self) -> None:
        """Bring the tab to the front. Browsers do not draw hidden tabs."""
        await self.call("Page.bringToFront")

    async def set_viewport(self, *, width: int = 1000, height: int = 760, dark: bool = False) -> None:
        """Set the size of the page, in CSS pixels, and its colour scheme."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self) -> bytes:
        """Return a screenshot as PNG."""
        await self.evaluate("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])
