"""Adapters: each module runs agents of one framework, which is an optional extra; only this module may import it.

    module            makes an agent from
    ================  ==============================================================
    langgraph         ``LangGraphAgent(graph)``: a compiled LangGraph graph
    pydantic_ai       ``PydanticAIAgent(agent)``: a pydantic-ai agent
    openai_agents     ``OpenAIAgent(agent)``: an agent of the OpenAI Agents SDK
    openjarvis        ``OpenJarvisAgent(make_agent)``: an OpenJarvis agent
    command           ``CommandAgent("program", ...)``: any program that speaks JSON lines

Set ``AGENTSTREAM_AGENT`` to the name of the new agent, for example ``my_module:agent``. The adapter streams the
framework's text as the answer, and emits its tool calls, inferences and usage as events. An exception of the framework
ends the run with an error. A cancel of the run stops the framework's agent.
"""
