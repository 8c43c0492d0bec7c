"""The address of the front end: client commands take it from a flag, from a variable, or from the settings of `up`."""

import pytest

from tests.cli.conftest import Deployment, agentstream
from tests.ports import free_port


@pytest.mark.parametrize(
    "settings",
    [
        {"AGENTSTREAM_HOST": "0.0.0.0", "AGENTSTREAM_API_KEYS": ""},  # noqa: S104
        {"AGENTSTREAM_HOST": "localhost"},
        {},
    ],
)
async def test_chat_asks_the_front_end_of_the_settings(deployment: Deployment, settings: dict[str, str]) -> None:
    """Without --url and AGENTSTREAM_URL, ``chat`` asks the front end at AGENTSTREAM_HOST and AGENTSTREAM_PORT."""
    port = deployment.url.rpartition(":")[2]
    ended = await deployment.command(
        "chat", '[["answer", "fine"]]', **{"AGENTSTREAM_URL": "", "AGENTSTREAM_PORT": port, **settings}
    )
    assert (ended.code, ended.out) == (0, "fine\n")


@pytest.mark.parametrize("url", ["127.0.0.1:{port}", "localhost:{port}/v1/", " http://127.0.0.1:{port}\n"])
async def test_a_url_may_lack_its_scheme(deployment: Deployment, url: str) -> None:
    """The address may be given without http://, with /v1 and with whitespace around it."""
    address = url.format(port=deployment.url.rpartition(":")[2])
    ended = await deployment.command("chat", '[["answer", "fine"]]', AGENTSTREAM_URL=address)
    assert (ended.code, ended.out) == (0, "fine\n")


@pytest.mark.parametrize("command", [("chat", "hi"), ("tail", "chatcmpl-1"), ("cancel", "chatcmpl-1")])
async def test_client_commands_name_the_address_that_they_tried(command: tuple[str, str]) -> None:
    """Each client command uses AGENTSTREAM_PORT, and names the address if nothing listens there."""
    port = free_port()
    ended = await agentstream(*command, AGENTSTREAM_PORT=str(port), AGENTSTREAM_HOST="[::1]")
    assert ended.code == 3
    assert f"http://[::1]:{port}" in ended.err


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"AGENTSTREAM_PORT": "0"}, "AGENTSTREAM_PORT is 0"),
        ({"AGENTSTREAM_PORT": "tcp://10.96.14.7:80"}, "enableServiceLinks: false"),
        ({"AGENTSTREAM_API_KEY": "sk-secret\nkey"}, "character 10 of 13 cannot be part of a key"),
    ],
)
async def test_a_wrong_address_or_key_is_refused(settings: dict[str, str], reason: str) -> None:
    """An address that is not known and a key that cannot be sent give exit code 2 and the reason, but not the key."""
    ended = await agentstream("chat", "hi", **settings)
    assert ended.code == 2
    assert reason in ended.err
    assert "sk-secret" not in ended.err
