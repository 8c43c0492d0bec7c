"""A LangGraph graph that asks people before it sends. Install it: pip install 'agentstream[langgraph]'."""

from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt

from agentstream.adapters.langgraph import LangGraphAgent


def send(state: MessagesState):
    mail = state["messages"][-1].text
    answer = interrupt({"tool": "send_mail", "arguments": {"text": mail}})  # waits, without holding a worker
    sent = f"I sent: {mail}" if answer["approve"] else f"I sent nothing: {answer.get('reason', 'denied')}"
    return {"messages": [("assistant", sent)]}


graph = StateGraph(MessagesState).add_node("send", send).add_edge(START, "send")
agent = LangGraphAgent(graph.compile(name="mail graph"), resumable=True)
