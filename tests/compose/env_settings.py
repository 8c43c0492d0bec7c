"""Checks that settings in .env and in the shell take effect in the containers."""

import json
import re

from tests.compose.deployment import Deployment

# Settings of the guides, each with what `agentstream config` shows for it.
SETTINGS = {
    "AGENTSTREAM_API_KEYS": "sk-check-one,sk-check-two",
    "AGENTSTREAM_CONCURRENCY": "7",
    "AGENTSTREAM_CORS_ORIGINS": "https://app.example",
    "AGENTSTREAM_DRAIN_TIMEOUT_S": "45",
    "AGENTSTREAM_ENGINE_CONTEXT_TOKENS": "4096",
    "AGENTSTREAM_KEY_PREFIX": "team-a",
    "AGENTSTREAM_LEASE_S": "12",
    "AGENTSTREAM_LOG_FORMAT": "json",
    "AGENTSTREAM_MAX_REQUESTS_PER_MINUTE": "3",
    "AGENTSTREAM_MAX_RUNS_PER_KEY": "5",
    "AGENTSTREAM_MCP_SERVERS": "/agents/mcp.json",
    "AGENTSTREAM_MODELS": "first,second",
    "AGENTSTREAM_QUEUE_TIMEOUT_S": "50",
    "AGENTSTREAM_RETRY_AFTER_TOOLS": "true",
}
SECRET = "AGENTSTREAM_API_KEYS"  # noqa: S105 -- the name of a variable
OTHERS = {
    "AGENTSTREAM_LOG_LEVEL": "",
    "OPENAI_BASE_URL": "",
    "OPENAI_API_KEY": "sk-of-the-model-server",
    # Fixed in the containers: a value for a start without Docker does no harm.
    "REDIS_URL": "redis://127.0.0.1:6379/0",
    "AGENTSTREAM_HOST": "127.0.0.1",
    "AGENTSTREAM_METRICS_PORT": "1",
    "AGENTSTREAM_CONCURENCY": "9",
    "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=check",
}


def _config(deployment: Deployment, service: str) -> dict[str, str]:
    """Return each variable of a service's process and its value, as the process itself reads it."""
    found = json.loads(deployment.compose("exec", "--no-TTY", service, "agentstream", "config", "--json"))["settings"]
    shown = {entry["variable"]: entry["value"] for entry in found.values()}
    return {name: _as_text(value) for name, value in shown.items()}


def _as_text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def everything_starts_with_an_env_file(deployment: Deployment) -> str:
    """A .env with settings, empty values and addresses of another place: everything gets healthy."""
    lines = [f"{name}={value}" for name, value in {**SETTINGS, **OTHERS}.items()]
    (deployment.folder / ".env").write_text("\n".join(lines) + "\n")
    (deployment.folder / "worker.env").write_text("SEARCH_API_KEY=only-for-the-agent\n")
    (deployment.folder / "agents/mcp.json").write_text('{"mcpServers": {}}')
    deployment.up()
    return f"{len(SETTINGS)} settings"


def each_setting_reaches_its_processes(deployment: Deployment) -> None:
    """Front ends and workers read every one of these settings from .env."""
    for service in ("frontend", "worker"):
        config = _config(deployment, service)
        for name, value in SETTINGS.items():
            if name != SECRET:
                assert config[name] == value, f"{service}: {name} is {config[name]}, not {value}"


def the_settings_take_effect(deployment: Deployment) -> None:
    """Keys, models, CORS, the limit per minute, JSON logs, the key prefix and the stop timeout are in effect."""
    keys = SETTINGS[SECRET].split(",")
    assert [deployment.call("/v1/models", key=key)[0] for key in ("", "sk-wrong", *keys)] == [401, 401, 200, 200]
    models = json.loads(deployment.call("/v1/models", key=keys[0])[1])["data"]
    assert {model["id"] for model in models} >= {"first", "second"}
    statuses = [deployment.ask("1 word, please", key=keys[0], stream=False)[0] for _ in range(5)]
    assert statuses.count(200) in {3, 4}, statuses  # four, if a new minute began meanwhile
    assert 429 in statuses
    for line in deployment.logs("worker"):
        json.loads(line)
    names = deployment.compose("exec", "--no-TTY", "redis", "redis-cli", "KEYS", "*").split()
    assert [name for name in names if name.startswith("team-a:")], names
    for service in ("nginx", "frontend", "worker"):
        assert int(deployment.inspect(deployment.containers(service)[0], "{{.Config.StopTimeout}}")) > 45


def secrets_stay_where_they_are_needed(deployment: Deployment) -> None:
    """Front ends get neither the model server's key nor worker.env, and workers get no keys of clients."""
    frontend, worker = deployment.environment("frontend"), deployment.environment("worker")
    assert worker["OPENAI_API_KEY"] == OTHERS["OPENAI_API_KEY"]
    assert worker["SEARCH_API_KEY"] == "only-for-the-agent"
    assert not worker.get(SECRET)
    assert frontend[SECRET] == SETTINGS[SECRET]
    assert not frontend.get("OPENAI_API_KEY")
    assert "SEARCH_API_KEY" not in frontend


def fixed_values_win(deployment: Deployment) -> None:
    """The addresses inside the containers stay, whatever .env says, and traces carry only its own attributes."""
    for service in ("frontend", "worker"):
        environment = deployment.environment(service)
        assert environment["REDIS_URL"] == "redis://redis:6379/0"
        assert environment["OTEL_RESOURCE_ATTRIBUTES"] == OTHERS["OTEL_RESOURCE_ATTRIBUTES"]
    assert deployment.environment("frontend")["AGENTSTREAM_HOST"] == "0.0.0.0"  # noqa: S104 -- in a container
    assert deployment.environment("worker")["AGENTSTREAM_METRICS_PORT"] == "9464"


def an_unknown_name_is_warned_about(deployment: Deployment) -> None:
    """A name in .env that is no setting is warned about in the log of each process, with the right name."""
    for service in ("frontend", "worker"):
        lines = deployment.logs(service)
        found = [line for line in lines if "AGENTSTREAM_CONCURENCY" in line]
        assert found, service
        assert "AGENTSTREAM_CONCURRENCY" in found[0]


def the_shell_wins(deployment: Deployment) -> None:
    """A variable of the shell wins over .env, and its container is replaced."""
    deployment.up(AGENTSTREAM_LEASE_S="15", AGENTSTREAM_MAX_TURNS="4")
    for service in ("frontend", "worker"):
        config = _config(deployment, service)
        assert (config["AGENTSTREAM_LEASE_S"], config["AGENTSTREAM_MAX_TURNS"]) == ("15", "4")
        assert config["AGENTSTREAM_CONCURRENCY"] == "7"


def nothing_of_it_stays(deployment: Deployment) -> None:
    """Without .env everything has its defaults again."""
    (deployment.folder / ".env").unlink()
    (deployment.folder / "worker.env").unlink()
    deployment.up()
    assert deployment.call("/v1/models")[0] == 200
    assert not [name for name in deployment.environment("worker") if re.match("AGENTSTREAM_(LEASE|CONCUR)", name)]


CHECKS = (
    everything_starts_with_an_env_file,
    each_setting_reaches_its_processes,
    the_settings_take_effect,
    secrets_stay_where_they_are_needed,
    fixed_values_win,
    an_unknown_name_is_warned_about,
    the_shell_wins,
    nothing_of_it_stays,
)
