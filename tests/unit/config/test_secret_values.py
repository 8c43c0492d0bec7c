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
        (
            "redis+sentinel://u:S3cret,x@h1:1,h2:2/m?sentinel_username=u&sentinel_password=S3cret;y&db=1",
            "redis+sentinel://u:***@h1:1,h2:2/m?sentinel_username=u&sentinel_password=***&db=1",
        ),
        ("rediss+cluster://:S3cret@[::1]:1,h2:2", "rediss+cluster://:***@[::1]:1,h2:2"),
        ("redis+sentinel://u:S3cret1@h1,u:S3cret2@h2/m", "redis+sentinel://u:***@h2/m"),
        ("redis+sentinel://h1:1,h2:2/m?sentinel_password=S3c@ret&password=S3cret", "redis+sentinel://***"),
        ("redis://h?password=S3cret#S3cret", "redis://h?password=***"),
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


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("redis+sentinel://u:p1,x@h1:1,h2:2/m?sentinel_password=p2%40;y", {"p1,x", "p2@;y"}),
        ("redis+cluster://:p1@h1,h2?password=p2&ssl_password=p3", {"p1", "p2", "p3"}),
        ("redis+sentinel://u:p1@h1,u:p2@h2/m", {"p1", "p2"}),
        ("sentinel://:p1@h1:26379;sentinel://:p2@h2:26379", {"p1", "p2"}),
        ("redis+sentinel://h1:1/m?sentinel_password=p@1", {"p@1"}),
    ],
)
def test_every_password_of_a_list_of_hosts_is_known(url: str, secrets: set[str]) -> None:
    """All passwords of a URL with several hosts are secrets, also in a spelling that is refused."""
    assert secrets <= set(url_secrets(url))


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
