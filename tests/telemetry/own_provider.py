"""An agent whose module sets up its own provider of spans, like a user of logfire."""

import os

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import ProcessResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from agentstream.agents import AgentResult, Run

provider = TracerProvider(resource=ProcessResourceDetector().detect().merge(Resource.create({"service.name": "mine"})))
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{os.environ['MY_COLLECTOR']}/v1/traces")))
trace.set_tracer_provider(provider)


async def agent(run: Run) -> AgentResult:
    """Answer with the id of the run."""
    return AgentResult(run.id)
