"""``agentstream config``: values, sources, and no secrets."""

import json

from agentstream.config import Settings, env_name
from tests.cli.conftest import agentstream
from tests.cli.terminals import terminal


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
    shown = json.loads(ended.out)["settings"]
    assert set(shown) == set(Settings.model_fields)
    settings = {field: {"value": setting["value"], "from": setting["from"]} for field, setting in shown.items()}
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


async def test_every_setting_is_shown_with_its_variable_and_meaning() -> None:
    """The table and the JSON name the environment variable of each setting and explain it."""
    lines = (await agentstream("config", "--workers", "7")).out.splitlines()
    assert [line.split()[0] for line in lines] == [env_name(field) for field in Settings.model_fields]
    (workers,) = (line for line in lines if line.startswith("AGENTSTREAM_WORKERS "))
    assert workers.split("  ")[-1].strip() == "Number of worker processes that `up` starts"
    settings = json.loads((await agentstream("config", "--json")).out)["settings"]
    assert settings["redis_url"]["variable"] == "REDIS_URL"
    assert {field: setting["meaning"] for field, setting in settings.items()} == {
        field: info.description for field, info in Settings.model_fields.items()
    }


async def test_a_terminal_shows_one_line_per_setting() -> None:
    """On a terminal each line is cut at the width, so that the columns stay below each other."""
    async with terminal("config", rows=120, columns=80) as shown:
        assert await shown.ended() == 0
        await shown.until(lambda lines: sum(line.endswith("…") for line in lines) > 10)
        rows = [line for line in shown.lines if line]
    assert len(rows) == len(Settings.model_fields)
