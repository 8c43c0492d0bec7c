"""instructor: structured answers, as JSON or as tool arguments (its default)."""

import json
from importlib.metadata import version
from typing import Any

import instructor
import openai
from pydantic import BaseModel
from reporting import BASE_URL, Observation, counts, drive, mode


class City(BaseModel):
    """A city."""

    city: str
    population: int


def client(how: Any) -> Any:
    return instructor.from_openai(openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key="none"), mode=how)


def structured(seen: Observation, how: Any, asked: str = "json") -> None:
    messages = [{"role": "user", "content": asked}]
    city, completion = client(how).chat.completions.create_with_completion(
        model="m1", messages=messages, response_model=City
    )
    seen.add(json.dumps(city.model_dump()))
    seen.record(finish=completion.choices[0].finish_reason, usage=counts(completion.usage))


def partial(seen: Observation, how: Any) -> None:
    messages = [{"role": "user", "content": "json"}]
    last = None
    for last in client(how).chat.completions.create_partial(model="m1", messages=messages, response_model=City):
        assert isinstance(last, BaseModel)
    assert last is not None
    seen.add(json.dumps(last.model_dump()))


@mode("loop")
def loop(seen: Observation) -> None:
    partial(seen, instructor.Mode.JSON)


@mode("whole")
def whole(seen: Observation) -> None:
    structured(seen, instructor.Mode.JSON)


@mode("silent")
def silent(seen: Observation) -> None:
    structured(seen, instructor.Mode.JSON, "silent-json")


@mode("client tools", needs="tools")
def client_tools(seen: Observation) -> None:
    structured(seen, instructor.Mode.TOOLS)


if __name__ == "__main__":
    drive(version("instructor"))
