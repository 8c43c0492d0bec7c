"""An agent that takes one to two seconds, and notes in Redis each time that a question was given to it."""

import asyncio
import uuid

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from agentstream import AgentResult, Run

STARTS = "compose-test:starts"
redis = Redis.from_url("redis://redis:6379/0")  # it also runs when the service uses a cluster


async def counting(run: Run) -> AgentResult:
    """Answer with one word for each number up to the one in the question, and then the question."""
    question = run.request.messages[-1].text
    await note(f"{question} {uuid.uuid4().hex}")
    for number in range(int(question.split()[0])):
        run.write(f"{number} ")
        await asyncio.sleep(0.05)
    run.write(question)
    return AgentResult("")


async def note(start: str) -> None:
    """Add this start to the set. While Redis restarts, try again: a set has each of its members once."""
    while True:
        try:
            await redis.sadd(STARTS, start)
        except RedisConnectionError:
            await asyncio.sleep(0.1)
        else:
            return
