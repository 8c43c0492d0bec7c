"""The texts of failed runs, as the worker stores them."""

from agentstream import errors
from agentstream.worker.terminal import failed_event


def test_the_text_of_an_error_is_cut() -> None:
    """The text of a failed run has at most MAX_MESSAGE_CHARACTERS, because it goes into a frame and a log line."""
    _, data = failed_event(errors.AGENT_ERROR, "x" * (errors.MAX_MESSAGE_CHARACTERS + 1))
    assert data == {"code": errors.AGENT_ERROR, "message": "x" * errors.MAX_MESSAGE_CHARACTERS}


def test_a_status_is_stored_if_the_code_does_not_have_it() -> None:
    """The event of a failed run has a status only if it is not that of the code."""
    assert "status" not in failed_event(errors.AGENT_ERROR, "no", 500)[1]
    assert failed_event(errors.AGENT_ERROR, "no", 429)[1]["status"] == 429
