"""An agent that takes one to two seconds, and counts in Redis how often each question was given to it."""

import asyncio
import os

from redis.asyncio import Redis

from agentstream import AgentResult, Run

STARTS = "compose-test:starts"
redis = Redis.from_url(os.environ["REDIS_URL"])


async def counting(run: Run) -> AgentResult:
    """Answer with one word for each number up to the one in the question, and then the question."""
    question = run.request.messages[-1].text
    await redis.hincrby(STARTS, question, 1)
    words = int(question.split()[0])
    for number in range(words):
        run.write(f"{number} ")
        await asyncio.sleep(0.05)
    run.write(question)
    return AgentResult("")
