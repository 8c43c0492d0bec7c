"""The spellings of settings: usual ones are accepted, and all others are refused at the start with the right one."""

from pathlib import Path
from typing import Any

import pytest

from agentstream.config import Settings, env_name, load_settings
from agentstream.errors import StartupError
from tests.unit.config.test_settings import EVERY_SETTING


def refusal(**flags: Any) -> str:
    with pytest.raises(StartupError) as caught:
        load_settings(**flags)
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("host", "[::1]", "::1"),
        ("host", "LocalHost", "localhost"),
        ("host", "app.localhost", "app.localhost"),
        ("host", "ip6-localhost", "ip6-localhost"),
        ("metrics_host", "[::]", "::"),
        ("metrics_host", "*", "0.0.0.0"),  # noqa: S104
        ("port", ":9000", 9000),
        ("metrics_port", " 9464\n", 9464),
        ("queues", "a , b,\nc,", ("a", "b", "c")),
        ("queues", "a\r\nb", ("a", "b")),
        ("queues", '["a", "b"]', ("a", "b")),
        ("queues", '"a","b"', ("a", "b")),
        ("models", "a,b,a", ("a", "b")),
        ("api_keys", "k-1\nk-2\n", ("k-1", "k-2")),
        ("agent", "pack.age : agent.run", "pack.age:agent.run"),
        ("agent", "builtin", None),
        ("agents", "a = m:f @ q, b = builtin", ("a=m:f@q", "b=builtin")),
        ("read_url", "ON", True),
        ("read_url", "Yes", True),
        ("log_content", "0", False),
        ("log_level", "INFO", "info"),
        ("log_level", "Warn", "warning"),
        ("log_level", "WARNING", "warning"),
        ("log_level", "40", "error"),
        ("log_format", "JSON", "json"),
        ("run_timeout_s", "90s", 90.0),
        ("run_timeout_s", "1h30m", 5400.0),
        ("run_timeout_s", "2 Minutes", 120.0),
        ("lease_s", "1500ms", 1.5),
        ("run_ttl_s", "1h", 3600),
        ("run_ttl_s", "1d", 86_400),
        ("demo_token_delay_ms", "20ms", 20),
        ("demo_token_delay_ms", "0.5s", 500),
        ("max_body_bytes", "10MB", 10 << 20),
        ("max_body_bytes", "512 KiB", 512 << 10),
        ("max_body_bytes", "4096b", 4096),
        ("log_max_bytes", "1g", 1 << 30),
        ("engine_context_tokens", "32k", 32_000),
        ("cors_origins", "https://A.Test/, http://b.test:80", ("https://a.test", "http://b.test")),
        ("cors_origins", "https://bücher.example", ("https://xn--bcher-kva.example",)),
        ("cors_origins", "http://[::1]:3000/", ("http://[::1]:3000",)),
        ("redis_url", "REDIS://h:1/2", "redis://h:1/2"),
        ("redis_url", "valkeys://h", "rediss://h"),
        ("redis_url", "Valkey://h", "redis://h"),
        ("redis_url", "REDISS+Sentinel://h1,h2:1/m/2", "rediss+sentinel://h1,h2:1/m/2"),
        ("redis_url", "redis+cluster://u:p%2C@h1:7001,[::1]", "redis+cluster://u:p%2C@h1:7001,[::1]"),
        ("redis_url", "redis://:p%23w@[::1]:6379/1", "redis://:p%23w@[::1]:6379/1"),
        ("redis_url", "unix://:p%40w@/run/redis.sock?db=1", "unix://:p%40w@/run/redis.sock?db=1"),
        ("openai_base_url", "http://h:1/v1/chat/completions", "http://h:1/v1"),
        ("openai_base_url", "HTTP://h/v1/", "HTTP://h/v1/"),
        ("openai_api_key", "sk-key\n", "sk-key"),
        ("openai_api_key", "\ufeff 'sk-key'\r\n", "sk-key"),
        ("mcp_servers", "~/mcp.json", str(Path.home() / "mcp.json")),
    ],
)
def test_a_usual_spelling_is_accepted(monkeypatch: pytest.MonkeyPatch, field: str, text: str, value: object) -> None:
    """Each usual spelling of a value is accepted, from a flag and from a variable."""
    assert getattr(load_settings(**{field: text}), field) == value
    monkeypatch.setenv(env_name(field), text)
    assert getattr(load_settings(), field) == value


@pytest.mark.parametrize("field", sorted(Settings.model_fields))
def test_whitespace_and_quotes_around_a_value_are_ignored(field: str) -> None:
    """Whitespace, quotes and characters without a width around the value of any setting change nothing."""
    text, _ = EVERY_SETTING[field]
    expected = load_settings(**{field: text})
    for around in ("{}\n", " {}\t", '"{}"', "'{}'", "\ufeff{}\u200b"):
        assert load_settings(**{field: around.format(text)}) == expected


def test_a_value_of_whitespace_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that has only whitespace or quotes means the default."""
    for field in Settings.model_fields:
        monkeypatch.setenv(env_name(field), " \n")
    assert load_settings() == Settings()


@pytest.mark.parametrize(
    ("field", "text", "right"),
    [
        ("host", "http://127.0.0.1:8000/", "write the address alone, such as 127.0.0.1:8000"),
        ("host", "127.0.0.1:8000", "write the address alone (127.0.0.1), and the port (8000) as its own setting"),
        ("host", "[::1]:8000", "write the address alone (::1), and the port (8000)"),
        ("host", "my host", "write an IP address or the name of a host"),
        ("port", "tcp://10.96.14.7:80", "enableServiceLinks: false"),
        ("metrics_port", "tcp://10.96.14.7:80", "enableServiceLinks: false"),
        ("port", "127.0.0.1:8000", "write the port alone (8000)"),
        ("port", "eight", "write a whole number in digits"),
        ("workers", "2.5", "write a whole number in digits"),
        ("workers", "auto", "write a whole number in digits"),
        ("queues", "a b", "write 1 to 64 letters, digits, '_', '.' or '-' and commas between the names"),
        ("queues", "[a, b]", "without brackets: one,two"),
        ("agent", "pack.age.run", "such as pack.age:run"),
        ("agent", "agents.py:run", "such as agents:run"),
        ("agent", "./pack/agents.py:run", "such as pack.agents:run"),
        ("agent", "my_agents", "such as my_agents:agent"),
        ("agent", "my-agents:run", "write package.module:attribute"),
        ("agent", "m:f()", "write package.module:attribute"),
        ("agents", "a:m:f", "should be model=package.module:attribute or model=builtin"),
        ("read_url", "enabled", "write true or false"),
        ("log_level", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("run_timeout_s", "2,5", "such as 30s or 2m"),
        ("run_timeout_s", "ten", "such as 30s or 2m"),
        ("run_timeout_s", "10 weeks", "'weeks' is not a unit of time: write ms, s, m, h or d"),
        ("run_ttl_s", "90.5s", "write a whole number"),
        ("demo_token_delay_ms", "fast", "such as 500ms"),
        ("max_body_bytes", "ten MB", "such as 4MB"),
        ("cors_origins", "a.test", "write https://a.test"),
        ("cors_origins", "https://a.test/app", "write https://a.test"),
        ("cors_origins", "https://*.a.test", "wildcards are not supported"),
        ("redis_url", "localhost:6379", "write redis://localhost:6379"),
        ("redis_url", ":secret-1@h:6379", "write redis://:***@h:6379"),
        ("redis_url", "http://h:6379", "http:// is not supported; expected redis://, rediss:// (with TLS), unix://, "),
        ("redis_url", "redis://h:6379/zero", "is the number of a database, not 'zero'"),
        ("redis_url", "redis://h:port", "is not a port"),
        ("redis_url", "redis://h:99999", "is not a port"),
        ("redis_url", "redis://[::1:6379", "is not a port, or '[' has no ']'"),
        ("redis_url", "h1,h2/m?sentinel_password=secret-1", "write redis://h1,h2/m?sentinel_password=***"),
        ("redis_url", "redis+sentinel://h1,h2", "the name of the master is missing"),
        ("redis_url", "redis+cluster://h1/0", "remove the database number"),
        ("redis_url", "unix://", "write unix:///path/to/redis.sock"),
        ("openai_base_url", "localhost:11434/v1", "write http://localhost:11434/v1"),
        ("openai_base_url", "192.168.1.5:8080", "write http://192.168.1.5:8080"),
        ("openai_base_url", "api.openai.com/v1", "write https://api.openai.com/v1"),
        ("openai_base_url", "ftp://h/v1", "begins with http:// or https://"),
        ("openai_base_url", "http:///v1", "names a host"),
        ("openai_base_url", "http://h/v1?api-version=1", "leave out the part from '?'"),
        ("openai_api_key", "Bearer sk-key", "leave out the word Bearer"),
        ("openai_api_key", "sk-ke y", "character 6 of 7 cannot be part of a key (a space"),
        ("openai_api_key", "sk-\u201ckey", "character 4 of 7 cannot be part of a key"),
        ("openai_api_key", "sk-\x07key", "character 4 of 7 cannot be part of a key"),
        ("api_keys", "key-1,ke y-2", "character 3 of 6 cannot be part of a key (a space"),
        ("mcp_servers", '{"mcpServers": {"a": {"env": {"K": "secret-1"}}}}', "write it to a file"),
    ],
)
def test_another_spelling_is_refused_with_the_right_one(field: str, text: str, right: str) -> None:
    """A value that cannot be used is refused with its variable and the right spelling, and shows no secret."""
    message = refusal(**{field: text})
    assert f"  {env_name(field)}" in message
    assert right in message
    assert "sk-" not in message
    assert "secret-1" not in message


@pytest.mark.parametrize("character", ["#", "/", "?", "@", "[", "]", "#a/b"])
@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix", "valkey", "redis+sentinel", "rediss+cluster"])
def test_a_password_with_a_reserved_character_is_refused_with_the_encoding(scheme: str, character: str) -> None:
    """A password with a character that ends a part of a URL is refused, with the hint to percent-encode it."""
    message = refusal(redis_url=f"{scheme}://:S3cretPart{character}restOfIt@h:6379")
    assert "percent-encode it: %23 for #" in message
    assert "S3cretPart" not in message
    assert "restOfIt" not in message
