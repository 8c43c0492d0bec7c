"""An OpenJarvis agent with a tool. Install it (Python before 3.14): pip install 'agentstream[openjarvis]'."""

from openjarvis.agents.orchestrator import OrchestratorAgent
from openjarvis.core.types import ToolResult
from openjarvis.engine.openai_compat_engines import OpenAICompatEngine
from openjarvis.tools._stubs import BaseTool, ToolSpec

from agentstream.adapters.openjarvis import OpenJarvisAgent


class Weather(BaseTool):
    tool_id = "weather"
    spec = ToolSpec(
        name="weather",
        description="Return the weather of a city.",
        parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    )

    def execute(self, city):
        return ToolResult("weather", f"sunny in {city}")


engine = OpenAICompatEngine()  # uses the server at OPENAI_COMPAT_HOST
agent = OpenJarvisAgent(lambda bus: OrchestratorAgent(engine, "llama3.1", tools=[Weather()], bus=bus))
