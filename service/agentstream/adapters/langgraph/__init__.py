"""Runs a LangGraph graph as an agent. No other folder may import LangGraph.

In your own module::

    from agentstream.adapters.langgraph import LangGraphAgent

    agent = LangGraphAgent(graph)  # AGENTSTREAM_AGENT=my_module:agent

The input of the graph is ``{"messages": [...]}``. The answer is the streamed text of all chat models in the graph,
except models with the tag "nostream". A message that a node creates without a model is written after the node has
ended; it may also be a dict or a tuple, such as ``("assistant", "hi")``. The usage is known only if the models report
it: ``ChatOpenAI(stream_usage=True)``. Options may depend on the run, for example the thread of a checkpointer::

    agent = LangGraphAgent(graph, thread_id=lambda run: run.caller.headers["X-Conversation"])

With a checkpointer that survives the worker the agent is resumable: another worker continues the graph from its last
step. A graph without a checkpointer is resumable with ``LangGraphAgent(graph, resumable=True)``: then its last step is
stored with the run. LangGraph repeats the nodes of the step that was cut, from their start:

- The text of a repeated node that clients have seen is skipped. If the node writes another text, the run fails. In a
  node that asks a model, wrap the model in ``continuing``: then the model continues the text that was cut.
- A tool that the node began before is not run again, unless its metadata say that it may be. A ``ToolNode`` gives the
  model a message instead; in any other node the run fails.
"""

from agentstream.errors import missing_extra

try:
    import langgraph.pregel  # noqa: F401 -- a missing framework is reported here, whatever is loaded already
except ImportError as exc:
    raise ImportError(missing_extra("this adapter", "langgraph")) from exc

from agentstream.adapters.langgraph.agent import LangGraphAgent, conversation
from agentstream.adapters.langgraph.continuing import continuing
from agentstream.adapters.langgraph.listener import as_answer, message_channels

__all__ = ["LangGraphAgent", "as_answer", "continuing", "conversation", "message_channels"]
