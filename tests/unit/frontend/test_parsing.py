"""The errors about wrong bodies: each is a sentence that names every wrong field and says what to write."""

from typing import Any

import pytest
from pydantic import ValidationError

from agentstream.frontend.api.parsing import MAX_OTHER_FIELDS, to_invalid_request
from agentstream.protocol.openai import ChatCompletionRequest

MESSAGES = [{"role": "user", "content": "hi"}]


def refusal(**body: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        ChatCompletionRequest.model_validate(body)
    return to_invalid_request(caught.value, body).message


def test_every_wrong_field_is_named() -> None:
    """An error explains the first wrong field and names the others, each once."""
    assert refusal(model=1, messages=MESSAGES, temperature="hot", stop=[1]) == (
        "model: Input should be a valid string; also wrong: temperature, stop"
    )


def test_many_wrong_fields_are_counted() -> None:
    """An error names a limited number of other fields, and says how many more are wrong."""
    message = refusal(model="m", messages=[{"role": "nobody", "content": "hi"}] * (MAX_OTHER_FIELDS + 3))
    assert message.count("messages[") == MAX_OTHER_FIELDS + 1
    assert message.endswith(" and 2 more")


def test_no_pattern_is_shown() -> None:
    """An error about a name says in words which characters it must not contain."""
    assert refusal(model="a\nb", messages=MESSAGES) == ("model: must not contain control characters, such as line ends")
