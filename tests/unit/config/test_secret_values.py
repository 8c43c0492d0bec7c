"""Secrets in URLs and in the environment: none is shown, and all are known to the masking of texts."""

import pytest

from agentstream.config import load_settings, masked
from agentstream.config.secret_values import environment_secrets, url_secrets, without_secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:S3cretPart#S3crest@h:6379", "redis://:***@h:6379"),
        ("redis://user:S3cret/a?b@c@h:6379/1", "redis://user:***@h:6379/1"),
        ("redis://S3cret@h", "redis://***@h"),
        ("redis://u#S3cret:S3cret@h", "redis://***@h"),
        (":S3cret@h:6379", ":***@h:6379"),
        ("S3cret@h", "***@h"),
        ("rediss://h:1/0?ssl_password=S3cret&db=1", "rediss://h:1/0?ssl_password=***&db=1"),
        ("https://h/mcp?api_key=S3cret&x=1", "https://h/mcp?api_key=***&x=1"),
        ("https://h/v1", "https://h/v1"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    """The password and the keys of a URL are masked, whatever characters they contain."""
    assert without_secrets(url) == shown
    assert masked("redis_url", url) == shown
    if "S3cret" in url:
        assert any("S3cret" in secret for secret in url_secrets(url))


def test_percent_encoded_passwords_are_known_in_both_forms() -> None:
    """The password of a URL is a secret as it is written and as it is sent."""
    assert {"p%23w", "p#w"} <= set(url_secrets("redis://:p%23w@h"))


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("ANTHROPIC_API_KEY", "sk-ant-12345", "sk-ant-12345"),
        ("GITHUB_TOKEN", "ghp_1234567890", "ghp_1234567890"),
        ("AWS_SECRET_ACCESS_KEY", "aws-1234567890", "aws-1234567890"),
        ("DB_PASSWORD_2", "hunter2hunter2", "hunter2hunter2"),
        ("DATABASE_URL", "postgres://u:hunter2hunter2@h/d", "hunter2hunter2"),
        ("https_proxy", "http://u:hunter2hunter2@proxy:3128", "hunter2hunter2"),
        ("SSL_KEY", "/etc/ssl/private.key", None),
        ("MY_TOKEN", "short", None),
        ("TOKENIZERS_PARALLELISM", "false-or-true", None),
    ],
)
def test_secrets_of_the_environment_are_known(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, secret: str | None
) -> None:
    """The keys and passwords of an agent's own libraries are secrets, too; names of files and short words are not."""
    for known in list(environment_secrets()):
        assert known  # whatever this machine has
    before = set(environment_secrets())
    monkeypatch.setenv(name, value)
    assert set(environment_secrets()) - before == ({secret} if secret else set())
    if secret:
        assert secret in load_settings().secrets()
