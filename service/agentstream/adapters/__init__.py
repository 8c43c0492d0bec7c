"""Agents of other frameworks as agents of ours: one module each, its framework an optional extra.

    module            makes an agent of
    ================  ==============================================================
    langgraph         ``LangGraphAgent(graph)``: a compiled LangGraph graph
    pydantic_ai       ``PydanticAIAgent(agent)``: a pydantic-ai agent
    openai_agents     ``OpenAIAgent(agent)``: an agent of the OpenAI Agents SDK
    openjarvis        ``OpenJarvisAgent(make_agent)``: an OpenJarvis agent
    command           ``CommandAgent("program", ...)``: any program that speaks JSON lines

Name the result in ``AGENTSTREAM_AGENT``. The framework's text becomes the answer as it comes, its tools, inferences
and usage become events, its exceptions end the run with an error, and a cancelled run stops it.
"""
