"""A LangGraph graph with a tool. Install it: pip install 'agentstream[langgraph]' langchain-openai."""

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from agentstream.adapters.langgraph import LangGraphAgent, continuing


@tool
def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


# ``continuing`` and ``resumable=True`` let another worker go on if this one is lost.
model = continuing(ChatOpenAI(model="gpt-5-mini", stream_usage=True).bind_tools([weather]))


async def think(state: MessagesState):
    return {"messages": [await model.ainvoke(state["messages"])]}


graph = StateGraph(MessagesState).add_node("think", think).add_node("tools", ToolNode([weather]))
graph.add_edge(START, "think").add_conditional_edges("think", tools_condition).add_edge("tools", "think")
agent = LangGraphAgent(graph.compile(name="weather graph"), resumable=True)
