"""Settings: their sources, the values that are refused, and the secrets that are never shown."""

import os
import re
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from agentstream.config import (
    AgentRoute,
    Settings,
    env_name,
    environment,
    failed_start_delay_s,
    is_loopback,
    load_client_settings,
    load_settings,
    unknown_variables,
)
from agentstream.errors import StartupError

# For every setting: the text of its variable, and the value that it becomes, which is not the default.
EVERY_SETTING: dict[str, tuple[str, Any]] = {
    "host": ("::1", "::1"),
    "port": ("9000", 9000),
    "redis_url": ("redis://h:1/2", "redis://h:1/2"),
    "queue": ("night.shift-2", "night.shift-2"),
    "queues": ("day, night.shift-2", ("day", "night.shift-2")),
    "key_prefix": ("prod:agents", "prod:agents"),
    "agents": ("a=pack.age:run@day,b=builtin", ("a=pack.age:run@day", "b=builtin")),
    "agent": ("pack.age:agent.run", "pack.age:agent.run"),
    "models": (" a, org/b ,,", ("a", "org/b")),
    "openai_base_url": ("http://h:1/v1", "http://h:1/v1"),
    "openai_api_key": ("sk-server", "sk-server"),
    "engine_model": ("llama", "llama"),
    "engine_timeout_s": ("2.5", 2.5),
    "engine_context_tokens": ("8192", 8192),
    "engine_prefill": ("vllm", "vllm"),
    "demo_token_delay_ms": ("0", 0),
    "max_turns": ("3", 3),
    "lease_s": ("2.5", 2.5),
    "body_timeout_s": ("2.5", 2.5),
    "max_attempts": ("3", 3),
    "retry_after_tools": ("true", True),
    "max_runs_per_key": ("4", 4),
    "max_requests_per_minute": ("60", 60),
    "tool_timeout_s": ("1.5", 1.5),
    "mcp_servers": ("mcp.json", "mcp.json"),
    "read_url": ("yes", True),
    "approve_tools": ("send_mail, files__*", ("send_mail", "files__*")),
    "tools": ("pack.age:one, pack:two", ("pack.age:one", "pack:two")),
    "engine": ("pack.age:engine", "pack.age:engine"),
    "agent_start_timeout_s": ("300", 300.0),
    "error_details": ("hidden", "hidden"),
    "error_form": ("strict", "strict"),
    "interrupt_text": ("false", False),
    "interrupt_timeout_s": ("2h", 7200.0),
    "event_types": ("progress, note", ("progress", "note")),
    "gather_ms": ("0", 0),
    "metrics_port": ("9464", 9464),
    "metrics_host": ("::1", "::1"),
    "workers": ("4", 4),
    "processes": ("3", 3),
    "concurrency": ("8", 8),
    "drain_timeout_s": ("0", 0.0),
    "broker_wait_s": ("0.5", 0.5),
    "failed_start_delay_s": ("1m", 60.0),
    "stop_delay_s": ("5", 5.0),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
    "log_content": ("true", True),
    "log_errors": ("false", False),
    "api_keys": ("sk-one,sk-two", ("sk-one", "sk-two")),
    "allow_open": ("1", True),
    "cors_origins": ("https://a.test,https://b.test", ("https://a.test", "https://b.test")),
    "caller_headers": ("X-User-Id, x-tenant", ("X-User-Id", "x-tenant")),
    "max_queued": ("5", 5),
    "admission_replicas": ("2", 2),
    "max_body_bytes": ("2048", 2048),
    "max_messages": ("7", 7),
    "queue_timeout_s": ("9", 9.0),
    "run_timeout_s": ("11", 11.0),
    "run_ttl_s": ("120", 120),
    "log_max_bytes": ("65536", 65536),
    "write_timeout_s": ("3", 3.0),
    "replay_word_delay_ms": ("6", 6),
}
SECRETS = {
    "REDIS_URL": "redis://:hunter2@h/0",
    "OPENAI_API_KEY": "hunter2-server",
    "AGENTSTREAM_API_KEYS": "hunter2-key",
}


def refusal(**flags: Any) -> StartupError:
    with pytest.raises(StartupError) as caught:
        load_settings(**flags)
    return caught.value


def test_the_table_above_has_every_setting() -> None:
    """The table above has a value for every setting, and no value is the default."""
    assert set(EVERY_SETTING) == set(Settings.model_fields)
    defaults = load_settings()
    assert not [name for name, (_, value) in EVERY_SETTING.items() if getattr(defaults, name) == value]


@pytest.mark.parametrize("field", EVERY_SETTING)
def test_a_variable_sets_its_setting(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    """Every setting is read from its environment variable and has a description."""
    text, value = EVERY_SETTING[field]
    monkeypatch.setenv(env_name(field), text)
    assert getattr(load_settings(), field) == value
    assert Settings.model_fields[field].description


@pytest.mark.parametrize("field", EVERY_SETTING)
def test_a_flag_overrides_its_variable(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    """The flag of every setting overrides its variable, even if the variable is wrong."""
    text, value = EVERY_SETTING[field]
    monkeypatch.setenv(env_name(field), "!")
    assert getattr(load_settings(**{field: text}), field) == value


def test_a_flag_that_is_not_given_overrides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag that is None was not given: the variable applies, or else the default."""
    monkeypatch.setenv("AGENTSTREAM_WORKERS", "7")
    settings = load_settings(workers=None, port=None)
    assert (settings.workers, settings.port) == (7, 8000)


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable, as a compose file may leave it, means the default."""
    for field in EVERY_SETTING:
        monkeypatch.setenv(env_name(field), "")
    assert load_settings() == Settings()
    assert load_settings().redis_url is None


def test_the_conventional_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis, OpenAI and the original bridge keep the names of their variables."""
    assert [env_name(name) for name in ("redis_url", "openai_base_url", "openai_api_key", "max_queued")] == [
        "REDIS_URL", "OPENAI_BASE_URL", "OPENAI_API_KEY", "AGENTSTREAM_MAX_QUEUED",
    ]  # fmt: skip
    monkeypatch.setenv("REPLAY_WORD_DELAY_MS", "3")
    assert load_settings().replay_word_delay_ms == 3
    monkeypatch.setenv("AGENTSTREAM_REPLAY_WORD_DELAY_MS", "4")
    assert load_settings().replay_word_delay_ms == 4
    assert load_settings(replay_word_delay_ms="5").replay_word_delay_ms == 5


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("port", "99999", "less than or equal to 65535"),
        ("port", "http", "valid integer"),
        ("queue", "a b", "write 1 to 64 letters, digits, '_', '.' or '-' and commas between the names"),
        ("queue", "q" * 65, "write 1 to 64 letters"),
        ("key_prefix", "{team}", "letters, digits"),
        ("key_prefix", "team a", "letters, digits"),
        ("key_prefix", "team*", "letters, digits"),
        ("key_prefix", ":team", "letters, digits"),
        ("key_prefix", "a::b", "letters, digits"),
        ("key_prefix", "t" * 65, "at most 64 characters"),
        ("agent", "no_colon", "package.module:attribute"),
        ("tools", "no_colon", "package.module:attribute"),
        ("approve_tools", "send_mail, read url", "'read url' is not the name of a tool"),
        ("engine", "no_colon", "package.module:attribute"),
        ("caller_headers", "X-User, Authorization", "the header Authorization holds credentials"),
        ("caller_headers", "proxy-authorization", "holds credentials"),
        ("caller_headers", "Cookie", "holds credentials"),
        ("caller_headers", "X-Api-Key", "holds credentials"),
        ("caller_headers", "X-User X-Tenant", "not the name of a header"),
        ("error_details", "some", "'full' or 'hidden'"),
        ("error_form", "json", "'text' or 'strict'"),
        ("event_types", "pro gress", "event type 'pro gress' is not valid"),
        ("event_types", "progress,run_started", "event type 'run_started' cannot be asked for"),
        ("agent_start_timeout_s", "0", "greater than 0"),
        ("models", ",", "at least 1 item"),
        ("workers", "0", "greater than or equal to 1"),
        ("log_level", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("read_url", "maybe", "valid boolean"),
        ("run_timeout_s", "0", "greater than 0"),
        ("run_timeout_s", "-1", "greater than 0"),
        ("run_timeout_s", "inf", "finite"),
        ("drain_timeout_s", "nan", "finite"),
        ("max_body_bytes", "10", "greater than or equal to 1024"),
        ("replay_word_delay_ms", "-1", "greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_refused(monkeypatch: pytest.MonkeyPatch, field: str, value: str, allowed: str) -> None:
    """A wrong value is refused with its variable, the value and the allowed values, from a variable and from a flag."""
    from_flag = str(refusal(**{field: value}))
    monkeypatch.setenv(env_name(field), value)
    from_variable = str(refusal())
    for message in (from_flag, from_variable):
        assert f"{env_name(field)}=" in message
        assert allowed in message
        assert value in message or field == "models"


def test_the_colon_after_the_key_prefix_may_be_written() -> None:
    """A prefix may end with the colon that separates it, and the names have one colon there."""
    assert load_settings(key_prefix="team-a:").key_prefix == "team-a"


def test_a_process_that_does_not_listen_needs_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker or a command may get the environment of a front end on a public address, without its keys."""
    monkeypatch.setenv("AGENTSTREAM_HOST", "0.0.0.0")  # noqa: S104 -- nothing listens
    assert load_client_settings().host == "0.0.0.0"  # noqa: S104
    with pytest.raises(StartupError, match="no API keys"):
        load_settings()
    with pytest.raises(StartupError, match="AGENTSTREAM_PORT='x'"):
        load_client_settings(port="x")


@pytest.mark.parametrize(
    ("text", "delay_s"), [("90", 90), ("2m", 120), ('"5"', 5), ("", 0), ("0", 0), ("x", 0), ("-1", 0), ("nan", 0)]
)
def test_the_delay_of_a_failed_start_is_read_alone(monkeypatch: pytest.MonkeyPatch, text: str, delay_s: float) -> None:
    """The delay before the exit is known if other settings are wrong, and is none if it is wrong itself."""
    monkeypatch.setenv("AGENTSTREAM_PORT", "x")
    monkeypatch.setenv("AGENTSTREAM_FAILED_START_DELAY_S", text)
    assert failed_start_delay_s({"failed_start_delay_s": None}) == delay_s
    assert failed_start_delay_s({"failed_start_delay_s": "7"}) == 7


def test_all_wrong_values_are_named_at_once() -> None:
    """One failed start reports every wrong setting."""
    message = str(refusal(port="x", workers="0", log_level="loud"))
    assert re.findall(r"^  (\w+)=", message, re.MULTILINE) == [
        "AGENTSTREAM_PORT", "AGENTSTREAM_WORKERS", "AGENTSTREAM_LOG_LEVEL",
    ]  # fmt: skip


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "192.168.1.5", "agents.example", "127.0.0.1.example", ""])  # noqa: S104
def test_a_public_address_needs_keys(host: str) -> None:
    """An address that others can reach is refused without keys, and either way out that the error names is enough."""
    message = str(refusal(host=host))
    assert f"other machines can reach the host {host.strip('[]')}," in message
    assert "AGENTSTREAM_API_KEYS" in message
    assert "AGENTSTREAM_ALLOW_OPEN=true" in message
    assert load_settings(host=host, api_keys="k").host == host.strip("[]")
    assert load_settings(host=host, allow_open="true").host == host.strip("[]")
    assert "AGENTSTREAM_API_KEYS" in str(refusal(host=host, api_keys=" , "))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost", "LOCALHOST", "ip6-localhost", "app.localhost"]
)
def test_a_loopback_address_needs_none(host: str) -> None:
    """Addresses and names that only this machine can reach need no keys."""
    assert is_loopback(host)
    assert load_settings(host=host).host == host.strip("[]").lower()


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    """The text that every secret contains."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return "hunter2"


def test_settings_show_no_secret(secret: str) -> None:
    """Printed settings show neither keys nor the password of the broker."""
    settings = load_settings()
    assert settings.api_keys == (f"{secret}-key",)
    assert secret not in repr(settings)
    assert secret not in str(settings)


def test_an_error_shows_no_secret(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    """Neither the error about wrong settings nor its traceback shows a secret."""
    for flags in ({"port": "x"}, {"redis_url": 5}, {"openai_api_key": [f"{secret}-list"]}, {"api_keys": 17}):
        assert secret not in "".join(traceback.format_exception(refusal(**flags)))
    for name in ("AGENTSTREAM_API_KEYS", "REDIS_URL"):
        monkeypatch.delenv(name)
    assert secret not in "".join(traceback.format_exception(refusal(host="::")))


@pytest.mark.parametrize("unset", [{"agents"}, {"agent", "models"}], ids=["one agent", "several"])
def test_a_child_gets_equal_settings(monkeypatch: pytest.MonkeyPatch, unset: set[str]) -> None:
    """The environment that settings are turned into gives a child process equal settings."""
    settings = load_settings(**{field: text for field, (text, _) in EVERY_SETTING.items() if field not in unset})
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings
    assert set(environment(settings)) == {env_name(field) for field in EVERY_SETTING} - {
        env_name(field) for field in unset & {"agent"}
    }


# Several agents


def test_a_map_of_agents_is_read() -> None:
    """Each entry names a model, its agent and perhaps its queue, and the worker serves all these queues."""
    settings = load_settings(queue="day", agents="org/big:1.5=pack.age:make.agent@night, b=builtin, c=m:f,")
    assert settings.routes == (
        AgentRoute("org/big:1.5", "pack.age:make.agent", "night"),
        AgentRoute("b", "builtin", "day"),
        AgentRoute("c", "m:f", "day"),
    )
    assert settings.served_queues == ("night", "day")


def test_a_worker_serves_the_named_queues() -> None:
    """A worker serves the queues that are named, each once, and otherwise the queues of its agents."""
    assert load_settings(agents="a=m:f@x,b=m:f@y", queues="y,y").served_queues == ("y",)
    assert load_settings(queues="x,y").served_queues == ("x", "y")
    assert load_settings(queue="z").served_queues == ("z",)
    assert load_settings(queue="z").routes == ()


@pytest.mark.parametrize(
    "entry",
    [
        "m",
        "=m:f",
        "a=",
        "a=m",
        "a=m:f@",
        "a=m:f@b d",
        "a=m:f@q@r",
        "a b=m:f",
        "a=builtin2",
        "a=m:f=x",
        f"{'a' * 257}=m:f",
    ],
)
def test_a_wrong_entry_is_refused(entry: str) -> None:
    """A malformed entry is refused, and the error shows the entry and the correct form."""
    message = str(refusal(agents=f"fine=m:f,{entry}"))
    assert "AGENTSTREAM_AGENTS=" in message
    assert f"entry {entry!r} should be model=package.module:attribute or model=builtin" in message
    assert "@queue" in message


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"agents": "a=m:f,b=m:f,a=m:g"}, "entry 'a=m:g': an earlier entry already names an agent for the model 'a'"),
        ({"agents": "a=m:f", "agent": "m:f"}, "unset AGENTSTREAM_AGENT"),
        ({"agents": "a=m:f", "models": "b"}, "unset AGENTSTREAM_MODELS"),
        (
            {"agents": "a=m:f@x,b=m:f", "queues": "x,z"},
            "AGENTSTREAM_QUEUES: no agent in AGENTSTREAM_AGENTS uses the queue 'z'; their queues are default, x",
        ),
        ({"queues": "a b"}, "'a b' is not the name of a queue"),
    ],
)
def test_contradicting_settings_are_refused(flags: dict[str, str], reason: str) -> None:
    """A model that is named twice, a second setting that names agents, and a queue without an agent are refused."""
    assert reason in str(refusal(**flags))


def test_defaults_reach_a_child_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Default settings reach a child process unchanged, and a setting without a value becomes no variable."""
    settings = load_settings()
    variables = environment(settings)
    assert "REDIS_URL" not in variables
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings


@hypothesis_settings(deadline=None)
@given(st.floats(min_value=1e-6, max_value=1e6), st.booleans(), st.lists(st.from_regex(r"[a-z/.:-]+", fullmatch=True)))
def test_values_reach_a_child_unchanged(seconds: float, switch: bool, names: list[str]) -> None:
    """Fractions, booleans and lists reach a child process unchanged."""
    settings = load_settings(run_timeout_s=seconds, read_url=switch, api_keys=",".join(names))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(settings).items():
            patch.setenv(name, value)
        assert load_settings() == settings


def test_settings_cannot_be_changed() -> None:
    """Settings cannot be changed after they are read."""
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("AGENTSTREAM_PROT", "AGENTSTREAM_PORT"),
        ("AGENTSTREAM_API_KEY", "AGENTSTREAM_API_KEYS"),
        ("AGENTSTREAM_MAX_QUEUE", "AGENTSTREAM_MAX_QUEUED"),
        ("AGENTSTREAM_REDIS_URL", "REDIS_URL"),
        ("AGENTSTREAM_OPENAI_API_KEY", "OPENAI_API_KEY"),
    ],
)
def test_an_unknown_variable_is_reported(monkeypatch: pytest.MonkeyPatch, name: str, meant: str) -> None:
    """A variable AGENTSTREAM_... that is not a setting is reported, with the name that was probably meant."""
    monkeypatch.setenv(name, "x")
    assert unknown_variables() == [f"{name} is not a setting; did you mean {meant}?"]


def test_known_and_foreign_variables_are_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the variables of settings, under any of their names, nor the variables of other programs are reported."""
    for field in EVERY_SETTING:
        monkeypatch.setenv(env_name(field), "x")
    monkeypatch.setenv("REPLAY_WORD_DELAY_MS", "1")
    monkeypatch.setenv("SOMEONES_PORT", "1")
    assert unknown_variables() == []
    assert "AGENTSTREAM_PORT" in os.environ


LINKS = {
    "AGENTSTREAM_SERVICE_HOST": "10.96.14.7",
    "AGENTSTREAM_SERVICE_PORT": "80",
    "AGENTSTREAM_SERVICE_PORT_HTTP": "80",
    "AGENTSTREAM_PORT_80_TCP": "tcp://10.96.14.7:80",
    "AGENTSTREAM_PORT_80_TCP_PROTO": "tcp",
    "AGENTSTREAM_PORT_80_TCP_PORT": "80",
    "AGENTSTREAM_PORT_80_TCP_ADDR": "10.96.14.7",
    "AGENTSTREAM_FRONTEND_PORT": "tcp://10.96.14.8:80",
    "AGENTSTREAM_FRONTEND_SERVICE_HOST": "10.96.14.8",
}


@pytest.mark.parametrize("name", ["AGENTSTREAM_PORT", "AGENTSTREAM_METRICS_PORT"])
@pytest.mark.parametrize("value", ["tcp://10.96.14.7:80", "udp://10.96.14.7:53", "tcp://[fd00::7]:80"])
def test_the_address_of_a_kubernetes_service_is_explained(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """If Kubernetes has set a port to the address of a Service, the error names the cause and the remedy."""
    monkeypatch.setenv(name, value)
    with pytest.raises(StartupError, match=r"address of a Kubernetes Service.*enableServiceLinks: false") as caught:
        load_settings()
    assert f"{name}={value!r}" in str(caught.value)


def test_the_variables_of_kubernetes_services_share_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """All variables of service links are reported in one line with the remedy, and other unknown ones as before."""
    for name, value in (LINKS | {"AGENTSTREAM_WORKER": "2"}).items():
        monkeypatch.setenv(name, value)
    links, other = unknown_variables()
    assert re.search("8 more variables.* agentstream, agentstream-frontend; .*enableServiceLinks: false", links)
    assert other == "AGENTSTREAM_WORKER is not a setting; did you mean AGENTSTREAM_WORKERS?"
