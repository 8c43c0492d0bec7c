"""``agentstream config``: values, sources, and no secrets."""

import json

from agentstream.config import Settings
from tests.cli.conftest import agentstream


async def test_every_setting_is_shown_with_its_source() -> None:
    """Each setting has its value and its source: a flag, a variable (in upper or lower case) or the default."""
    ended = await agentstream(
        "config",
        "--json",
        "--workers",
        "7",
        "--read-url",
        AGENTSTREAM_WORKERS="3",
        AGENTSTREAM_PORT="9000",
        agentstream_lease_s="4",
        RETRY_AFTER_TOOLS="yes",
    )
    settings = json.loads(ended.out)["settings"]
    assert set(settings) == set(Settings.model_fields)
    assert settings["workers"] == {"value": 7, "from": "--workers"}
    assert settings["read_url"] == {"value": True, "from": "--read-url"}
    assert settings["port"] == {"value": 9000, "from": "AGENTSTREAM_PORT"}
    assert settings["lease_s"] == {"value": 4, "from": "agentstream_lease_s"}
    assert settings["retry_after_tools"] == {"value": True, "from": "RETRY_AFTER_TOOLS"}
    assert settings["host"] == {"value": "127.0.0.1", "from": "default"}


async def test_no_secret_is_shown() -> None:
    """The table and the JSON mask API keys and URL passwords, and show the rest of the URLs."""
    secrets = {
        "REDIS_URL": "rediss://user:hunter2@redis.example:6380/1?ssl_password=hunter2",
        "AGENTSTREAM_API_KEYS": "hunter2,hunter2-b",
        "OPENAI_API_KEY": "sk-hunter2",
        "OPENAI_BASE_URL": "https://me:hunter2@model.example/v1",
    }
    for form in ([], ["--json"]):
        ended = await agentstream("config", *form, **secrets)
        assert ended.code == 0
        assert "hunter2" not in ended.out + ended.err
        assert "rediss://user:***@redis.example:6380/1" in ended.out
        assert "https://me:***@model.example/v1" in ended.out


async def test_wrong_settings_and_unknown_variables_are_named() -> None:
    """A wrong setting gives exit code 2 and its name; an unknown variable gives a warning."""
    ended = await agentstream("config", AGENTSTREAM_WORKERS="0")
    assert ended.code == 2
    assert "AGENTSTREAM_WORKERS='0'" in ended.err
    ended = await agentstream("config", AGENTSTREAM_WORKER="2", AGENTSTREAM_URL="http://h")
    assert ended.code == 0
    assert "AGENTSTREAM_WORKER is not a setting; did you mean AGENTSTREAM_WORKERS?" in ended.err
    assert "AGENTSTREAM_URL" not in ended.err


async def test_a_wrong_redis_url_is_refused_without_its_password() -> None:
    """A URL of Redis that no process could use gives exit code 2, the reason, and no part of the password."""
    ended = await agentstream("config", REDIS_URL="redis://h/0?family=0")
    assert ended.code == 2
    assert "REDIS_URL: the option 'family' does not exist" in ended.err
    for wrong in ("redis://:S3cretPart#restOfIt@h:6379", "redis://:S3cretPart/restOfIt@h", ":S3cretPart#restOfIt@h"):
        ended = await agentstream("config", REDIS_URL=wrong)
        assert ended.code == 2
        assert "REDIS_URL" in ended.err
        assert "S3cretPart" not in ended.out + ended.err
        assert "restOfIt" not in ended.out + ended.err
