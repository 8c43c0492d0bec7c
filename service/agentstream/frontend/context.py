"""The objects that all handlers of the front end share."""

from dataclasses import dataclass

from aiohttp import web

from agentstream.config import Settings
from agentstream.frontend.auth import Authenticator
from agentstream.frontend.background import BackgroundTasks
from agentstream.frontend.connection_limit import ConnectionLimit
from agentstream.frontend.metrics import FrontendMetrics
from agentstream.frontend.runs.model_router import ModelRouter
from agentstream.frontend.runs.pump import FlushScheduler
from agentstream.frontend.runs.recovery import Recovery
from agentstream.frontend.runs.watcher import Watcher
from agentstream.store.bus.bus import Bus
from agentstream.store.connection.link import Link
from agentstream.store.inputs import InputStore
from agentstream.store.interrupts import InterruptStore
from agentstream.store.runs import RunStore


@dataclass(slots=True)
class Context:
    """The parts of the front end.

    After a stop signal it is ``leaving``: it is not ready, and closes each connection after its next answer. It is also
    ``draining`` when it refuses new connections and waits for open runs to end.
    """

    settings: Settings
    link: Link
    bus: Bus
    model_router: ModelRouter
    authenticator: Authenticator
    runs: RunStore
    interrupts: InterruptStore
    inputs: InputStore
    watcher: Watcher
    flush_scheduler: FlushScheduler
    background_tasks: BackgroundTasks
    recovery: Recovery
    metrics: FrontendMetrics
    connections: ConnectionLimit
    leaving: bool = False
    draining: bool = False

    def observe(self) -> None:
        """Update the metrics of this process."""
        self.metrics.observe(self.watcher, self.bus.feed_counts, self.link, self.connections)


CONTEXT = web.AppKey("context", Context)
