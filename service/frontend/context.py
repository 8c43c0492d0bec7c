"""What every handler of the front end shares."""

from dataclasses import dataclass

from aiohttp import web

from service.config import Settings
from service.frontend.auth import Authenticator
from service.frontend.dispatch import Dispatch
from service.frontend.errands import Errands
from service.frontend.metrics import FrontendMetrics
from service.frontend.streaming import Outbox
from service.frontend.watch import Watcher
from service.store.bus import Bus
from service.store.link import Link
from service.store.runs import RunStore


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
