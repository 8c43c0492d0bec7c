"""Print traces as they arrive: ``python -m tests.telemetry [PORT]``. Other processes send their spans to that port.

It shows the steps of a run without a tracing backend:

    .venv/bin/python -m tests.telemetry &
    OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 .venv/bin/agentstream up
"""

import asyncio
import sys

from aiohttp import web

from tests.telemetry.collector import Collector, application
from tests.telemetry.trace_tree import format_trace

QUIET_S = 6.0  # the SDK sends every 5 s, so the spans of all processes have then arrived


async def main(port: int) -> None:
    collector = Collector()
    runner = web.AppRunner(application(collector), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print(f"receiving spans at http://127.0.0.1:{port}", flush=True)
    loop = asyncio.get_running_loop()
    grown_s: dict[str, tuple[int, float]] = {}  # trace id: number of spans, and time of the last new one
    while True:
        await asyncio.sleep(QUIET_S / 6)
        for trace in {span.trace for span in collector.spans}:
            spans = [span for span in collector.spans if span.trace == trace]
            count, since_s = grown_s.get(trace, (0, 0.0))
            if len(spans) > count:
                grown_s[trace] = len(spans), loop.time()
            elif loop.time() - since_s > QUIET_S:
                print("", *format_trace(spans), sep="\n", flush=True)
                collector.spans = [span for span in collector.spans if span.trace != trace]
                del grown_s[trace]


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 4318))
