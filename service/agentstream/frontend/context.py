"""What every handler of the front end shares."""

from dataclasses import dataclass

from aiohttp import web

from agentstream.config import Settings
from agentstream.frontend.auth import Authenticator
from agentstream.frontend.background import Errands
from agentstream.frontend.metrics import FrontendMetrics
from agentstream.frontend.runs.dispatch import Dispatch
from agentstream.frontend.runs.pump import Outbox
from agentstream.frontend.runs.watcher import Watcher
from agentstream.store.bus.bus import Bus
from agentstream.store.connection.link import Link
from agentstream.store.runs import RunStore


@dataclass(slots=True)
class Context:
    """The front end's parts. ``draining`` turns new runs away while open ones end."""

    settings: Settings
    link: Link
    bus: Bus
    submitter: Dispatch
    authenticator: Authenticator
    runs: RunStore
    watcher: Watcher
    outbox: Outbox
    errands: Errands
    metrics: FrontendMetrics
    draining: bool = False

    def observe(self) -> None:
        """Let the metrics take what this process knows of itself."""
        self.metrics.observe(self.watcher, self.bus.feeds, self.link)


CONTEXT = web.AppKey("context", Context)
