"""``agentstream config``: the settings in effect, where they come from, and no secret."""

import json

from agentstream.config import Settings
from tests.cli.conftest import agentstream


async def test_every_setting_is_shown_with_its_source() -> None:
    """Each setting is there with its value, and a flag, a variable (whatever its case) or the default as its source."""
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
    told = json.loads(ended.out)["settings"]
    assert set(told) == set(Settings.model_fields)
    assert told["workers"] == {"value": 7, "from": "--workers"}
    assert told["read_url"] == {"value": True, "from": "--read-url"}
    assert told["port"] == {"value": 9000, "from": "AGENTSTREAM_PORT"}
    assert told["lease_s"] == {"value": 4, "from": "agentstream_lease_s"}
    assert told["retry_after_tools"] == {"value": True, "from": "RETRY_AFTER_TOOLS"}
    assert told["host"] == {"value": "127.0.0.1", "from": "default"}


async def test_no_secret_is_shown() -> None:
    """Neither a password of a URL nor a key is in the table or the JSON, and what surrounds them is."""
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


async def test_what_is_wrong_is_named() -> None:
    """A wrong setting ends with 2 under its name; a variable that is none is warned of."""
    ended = await agentstream("config", AGENTSTREAM_WORKERS="0")
    assert ended.code == 2
    assert "AGENTSTREAM_WORKERS='0'" in ended.err
    ended = await agentstream("config", AGENTSTREAM_WORKER="2", AGENTSTREAM_URL="http://h")
    assert ended.code == 0
    assert "AGENTSTREAM_WORKER is not a setting; did you mean AGENTSTREAM_WORKERS?" in ended.err
    assert "AGENTSTREAM_URL" not in ended.err
