"""The proxies of the environment: a wrong one ends the start with its name, and errors name the one that was used."""

import pytest

from agentstream.engines.base import EngineError
from agentstream.engines.openai import OpenAIEngine
from agentstream.engines.proxies import proxy_of, unusable_proxy
from agentstream.errors import StartupError
from agentstream.protocol.openai import ChatCompletionRequest
from tests.ports import free_port

VARIABLES = [name + "_PROXY" for name in ("HTTP", "HTTPS", "ALL", "NO")]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("ALL_PROXY", "socks://127.0.0.1:9", "socks:// is not supported; write socks5://127.0.0.1:9"),
        ("all_proxy", "socks4://127.0.0.1:9", "write socks5://127.0.0.1:9"),
        ("HTTPS_PROXY", "ftp://me:hunter2@p:1", "ftp:// is not supported; write a URL with http://"),
        ("HTTP_PROXY", "http://p:port", "write scheme://host:port"),
        ("HTTP_PROXY", "http://[::1", "write scheme://host:port"),
        ("ALL_PROXY", "socks5://p:1", "pip install socksio"),
    ],
)
def test_a_wrong_proxy_is_named_at_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    """A proxy that the client cannot use is refused with its variable, its value and what to write instead."""
    monkeypatch.setenv(name, value)
    with pytest.raises(StartupError) as refusal:
        OpenAIEngine("http://127.0.0.1:1/v1", "sk-secret-key")
    assert f"{name.upper()}=" in str(refusal.value)
    assert reason in str(refusal.value)
    assert "hunter2" not in str(refusal.value)
    assert unusable_proxy() == str(refusal.value)


def test_another_wrong_value_is_refused_with_the_names_of_all_variables() -> None:
    """If the client does not start for another reason, the error names all variables that it reads."""
    with pytest.raises(StartupError, match="OPENAI_BASE_URL and the variables HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and"):
        OpenAIEngine("http://127.0.0.1:port/v1", "sk-secret-key")


async def test_an_error_names_the_proxy_that_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a request fails on its way through a proxy, the error names the proxy and its variable, not its password."""
    monkeypatch.setenv("HTTP_PROXY", f"http://me:hunter2@127.0.0.1:{free_port()}")
    engine = OpenAIEngine("http://model.example/v1", "sk-secret-key", max_retries=0)
    request = ChatCompletionRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    with pytest.raises(EngineError, match=r"through the proxy http://\*\*\*@127\.0\.0\.1:\d+ \(HTTP_PROXY\)"):
        await anext(engine.stream(request, [{"role": "user", "content": "hi"}], []))
    await engine.close()


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, "http://h/v1", ""),
        ({"HTTP_PROXY": "p:3128"}, "http://h/v1", "http://p:3128 (HTTP_PROXY)"),
        ({"HTTP_PROXY": "p:3128"}, "https://h/v1", ""),
        ({"https_proxy": "http://me:hunter2@p:1"}, "https://h/v1", "http://***@p:1 (HTTPS_PROXY)"),
        ({"ALL_PROXY": "http://p:1"}, "https://h/v1", "http://p:1 (ALL_PROXY)"),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "localhost,h"}, "https://h/v1", ""),
    ],
)
def test_the_proxy_of_a_url_is_named(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, proxy: str
) -> None:
    """The proxy of a URL is that of its scheme, else that of ALL_PROXY, unless NO_PROXY names the host."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(url) == proxy
    assert unusable_proxy() is None
