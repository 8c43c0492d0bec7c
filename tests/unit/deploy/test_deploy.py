"""The deployment files match each other, the settings, and the tools that read them."""

import itertools
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose, PyOptions, parse_duration

from agentstream.cli.commands.tail import tail
from agentstream.config import Settings, env_name
from agentstream.protocol import broker_url
from agentstream.telemetry import names as metric_names

ROOT = Path(__file__).parents[3]
REQUIREMENTS = sorted((ROOT / "deploy/requirements").glob("*.txt"))
OURS = ("AGENTSTREAM_", "OPENAI_", "REDIS_")
OPERATORS_GUIDES = ("operations", "scaling", "security")
FIXED_IN_CONTAINERS = {  # compose.yaml sets them, or only `up` reads them
    *("REDIS_URL", "AGENTSTREAM_HOST", "AGENTSTREAM_PORT", "AGENTSTREAM_METRICS_HOST", "AGENTSTREAM_METRICS_PORT"),
    "AGENTSTREAM_WORKERS",
}
OF_COMPOSE = {"REDIS_MAXMEMORY"}  # a variable of compose.yaml, and not a setting
COMMAND_VARIABLES = {option.envvar for option in tail.params if isinstance(option.envvar, str)}  # no settings
PIN = re.compile(r"(?P<name>[a-z0-9][a-z0-9.-]*)==(?P<version>[0-9][\w.]*)( ; (?P<marker>[^\\]+))? \\")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")


def filled(text: str) -> str:
    """Return a compose file as Compose reads it when no variable is set: with the default of each ``${…}``, or nothing.

    The parser accepts only addresses, so ``host-gateway``, Docker's name for this machine, is replaced by one. It does
    not know optional env files, a newer part of the specification, so they are written as required ones.
    """
    text = re.sub(r"\{path: (\S+), required: false\}", r"\1", text)
    return re.sub(r"\$\{\w+(?::-([^}]*)|:\+[^}]*)?\}", lambda match: match[1] or "", text).replace(
        "host-gateway", "127.0.0.1"
    )


def parse(text: str) -> PyCompose:
    """Parse a filled compose file. PyYAML merges the anchors, because the parser merges only one level of them."""
    return PyOptions().from_yaml(yaml.safe_dump(yaml.safe_load(text)))


@pytest.fixture(scope="module")
def every_service() -> dict[str, Any]:
    """Return all services of compose.yaml, parsed and validated by the Compose Specification."""
    parsed = parse(filled((ROOT / "compose.yaml").read_text()))
    parsed.validate()
    services: dict[str, Any] = parsed.to_dict()["services"]
    return services


@pytest.fixture(scope="module")
def compose(every_service: dict[str, Any]) -> dict[str, Any]:
    """Return the services that start without a profile."""
    return {name: service for name, service in every_service.items() if "profiles" not in service}


@pytest.fixture(scope="module")
def observers(every_service: dict[str, Any]) -> dict[str, Any]:
    """Return the services that start with the profile ``observability``."""
    return {name: service for name, service in every_service.items() if service.get("profiles") == ["observability"]}


@pytest.fixture(scope="module")
def settings_names() -> set[str]:
    """Return the environment variables of all settings."""
    return {env_name(field) for field in Settings.model_fields}


def pins(path: Path) -> dict[str, str]:
    """Return the pinned versions in a requirements file, by name."""
    return {match["name"]: match["version"] for match in PIN.finditer(path.read_text())}


def mentioned(path: str) -> set[str]:
    """Return the variables of this service that a file names."""
    return set(re.findall(rf"\b(?:{'|'.join(OURS)})[A-Z_]+\b", (ROOT / path).read_text()))


@pytest.mark.parametrize(
    ("right", "wrong"), [("healthcheck:", "healthchek:"), ("networks: [edge]", "networks: [egde]")], ids=["key", "name"]
)
def test_a_wrong_compose_file_is_refused(right: str, wrong: str) -> None:
    """The validation that these tests use refuses an unknown key and an undefined network."""
    text = filled((ROOT / "compose.yaml").read_text())
    assert right in text
    with pytest.raises(ValueError, match=wrong.strip(":").rpartition("[")[2].strip("]")):
        parse(text.replace(right, wrong)).validate()


def test_compose_has_two_of_each_process(compose: dict[str, Any]) -> None:
    """Two front ends and two workers run by default, and they have no fixed name, so that --scale can add more."""
    assert set(compose) == {"nginx", "frontend", "worker", "redis"}
    for service in ("frontend", "worker"):
        assert compose[service]["deploy"]["replicas"] == 2
        assert "container_name" not in compose[service]


def test_only_nginx_is_published_and_only_on_this_machine(compose: dict[str, Any]) -> None:
    """Only nginx is published, on loopback only, so front ends may listen without keys."""
    assert [service for service in compose if "ports" in compose[service]] == ["nginx"]
    assert compose["nginx"]["ports"] == ["127.0.0.1:8000:8080"]
    assert compose["frontend"]["environment"]["AGENTSTREAM_ALLOW_OPEN"] == "true"
    assert compose["redis"]["networks"] == ["broker"]


def test_observers_do_not_affect_the_service(every_service: dict[str, Any], observers: dict[str, Any]) -> None:
    """Observers start only with their profile, are pinned and have a memory limit, and no service depends on them."""
    assert set(observers) == {"prometheus", "grafana", "jaeger"}
    for service in observers.values():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
        assert service["mem_limit"] == "512mb"
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert "broker" not in service["networks"]  # Redis has no password in that network
    for service in every_service.values():
        assert not set(service.get("depends_on", {})) & set(observers)


def test_every_container_is_confined(every_service: dict[str, Any]) -> None:
    """Each container has a read-only root, no capabilities, and cannot gain privileges."""
    for service in every_service.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("path", ["compose.yaml", "deploy/Dockerfile", "deploy/nginx.conf", ".ci/run", "Makefile"])
def test_every_variable_is_a_setting(path: str, settings_names: set[str]) -> None:
    """Every variable that a deployment file names is a setting, or one of compose.yaml itself."""
    assert mentioned(path) <= settings_names | OF_COMPOSE


def test_every_setting_can_come_from_the_shell(compose: dict[str, Any], settings_names: set[str]) -> None:
    """compose.yaml passes every setting on from the shell to both processes, except those that it fixes."""
    for service in ("frontend", "worker"):
        assert settings_names - FIXED_IN_CONTAINERS <= set(compose[service]["environment"])


def test_every_variable_of_the_env_file_reaches_the_processes(compose: dict[str, Any]) -> None:
    """The file .env is given to both processes and may be missing; a second file is for workers only."""
    assert compose["frontend"]["env_file"] == [".env"]
    assert compose["worker"]["env_file"] == [".env", "worker.env"]
    assert len(re.findall("path: .*required: false", (ROOT / "compose.yaml").read_text())) == 3
    assert "OTEL_RESOURCE_ATTRIBUTES" not in compose["worker"]["environment"]  # the docker command sets it for itself


@pytest.mark.parametrize("guide", OPERATORS_GUIDES)
def test_every_variable_of_a_guide_exists(guide: str, settings_names: set[str]) -> None:
    """No guide for operators names a variable that is neither a setting nor read by a command."""
    assert mentioned(f"deploy/guides/{guide}.md") <= settings_names | COMMAND_VARIABLES | OF_COMPOSE


def test_the_front_end_accepts_its_environment(compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The values that compose gives to a front end are valid settings, and make it listen for nginx."""
    for name, value in compose["frontend"]["environment"].items():
        if value is not None:
            monkeypatch.setenv(name, str(value))
    settings = Settings()
    assert (settings.host, settings.port) == ("0.0.0.0", 8000)  # noqa: S104 -- inside a container


def test_clients_do_not_see_the_texts_of_errors(compose: dict[str, Any]) -> None:
    """A worker of compose hides the texts of its agents' errors from clients, if nothing else is set."""
    assert compose["worker"]["environment"]["AGENTSTREAM_ERROR_DETAILS"] == "hidden"


def test_a_worker_can_be_asked_for_its_health(compose: dict[str, Any]) -> None:
    """A worker serves its health on a port that compose does not publish; the image's health check asks there."""
    assert compose["worker"]["environment"]["AGENTSTREAM_METRICS_PORT"]
    assert "ports" not in compose["worker"]
    assert "healthcheck" not in compose["worker"]


def test_one_service_builds_the_image(compose: dict[str, Any]) -> None:
    """Only the front end builds the image that both processes use, and no registry is asked for it."""
    assert [service for service in compose if "build" in compose[service]] == ["frontend"]
    for service in ("frontend", "worker"):
        assert compose[service]["image"] == "agentstream"
        assert compose[service]["pull_policy"] == "never"


def test_memory_and_files_have_limits(every_service: dict[str, Any]) -> None:
    """Each file system in memory has a size, Redis a memory limit, and each process that holds streams a file limit."""
    for service in every_service.values():
        assert all(":size=" in mount for mount in service["tmpfs"])
    assert " --maxmemory " in every_service["redis"]["command"]
    for name in ("nginx", "frontend", "worker"):
        assert every_service[name]["ulimits"]["nofile"] == 16384


def test_secrets_go_where_they_are_needed(compose: dict[str, Any]) -> None:
    """Front ends do not get the key of the model server, and workers do not get the keys of callers."""
    assert compose["frontend"]["environment"]["OPENAI_API_KEY"] == ""  # an empty variable is not set
    assert compose["worker"]["environment"]["AGENTSTREAM_API_KEYS"] == ""


def test_a_stop_leaves_time_to_drain(compose: dict[str, Any]) -> None:
    """Docker waits longer for the end of a process than the process needs to drain."""
    drain_s = Settings.model_fields["drain_timeout_s"].default
    for service in ("nginx", "frontend", "worker"):
        assert parse_duration(compose[service]["stop_grace_period"]) > drain_s


def test_more_time_to_drain_is_also_given_by_docker() -> None:
    """AGENTSTREAM_DRAIN_TIMEOUT_S in .env also raises the time that Docker waits for each container."""
    text = (ROOT / "compose.yaml").read_text().replace("${AGENTSTREAM_DRAIN_TIMEOUT_S:-20}", "600")
    services = parse(filled(text)).to_dict()["services"]
    for service in ("nginx", "frontend", "worker"):
        assert parse_duration(services[service]["stop_grace_period"]) > 600


def test_redis_keeps_its_data(compose: dict[str, Any]) -> None:
    """Redis writes its append-only file to a volume and evicts no keys."""
    command = shlex.split(compose["redis"]["command"])
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert compose["redis"]["volumes"] == ["redis:/data"]


SERVERS = {
    "cluster": [f"cluster-{number}" for number in range(1, 7)],
    "sentinel": [*(f"redis-{number}" for number in range(1, 4)), *(f"sentinel-{number}" for number in range(1, 4))],
}


@pytest.mark.parametrize("profile", SERVERS)
def test_a_profile_starts_its_servers(every_service: dict[str, Any], profile: str) -> None:
    """A profile starts its servers, each with its own volume, name and limits like the single Redis, and no port."""
    started = {name for name, service in every_service.items() if service.get("profiles") == [profile]}
    assert started - {"cluster-keeper"} == set(SERVERS[profile])
    for name in SERVERS[profile]:
        service = every_service[name]
        assert (service["image"], service["hostname"]) == (every_service["redis"]["image"], name)
        assert service["networks"] == ["broker"]
        assert "ports" not in service
        assert [volume for volume in service["volumes"] if volume.endswith(":/data")] == [f"{name}:/data"]
        assert service["healthcheck"]
        if not name.startswith("sentinel-"):
            assert service["command"] == every_service["redis"]["command"]


@pytest.mark.parametrize("profile", SERVERS)
def test_the_url_of_a_profile_leads_to_its_servers(every_service: dict[str, Any], profile: str) -> None:
    """compose.yaml and the guide have the same URL for each profile, and it names servers and a primary that exist."""
    pattern = rf"BROKER_URL=(redis\+{profile}://\S+)"
    (shown,) = re.findall(pattern, (ROOT / "compose.yaml").read_text())
    assert set(re.findall(pattern, (ROOT / "deploy/guides/operations.md").read_text())) == {shown}
    url = broker_url.parse(shown)
    assert {host for host, _ in url.addresses} <= set(SERVERS[profile])
    assert len(url.addresses) == 3
    assert "profiles" in every_service[url.addresses[0][0]]
    if profile == "sentinel":
        script = (ROOT / "deploy/sentinel-node.sh").read_text()
        assert f"sentinel monitor {url.master} " in script


def test_the_single_redis_is_the_default(compose: dict[str, Any]) -> None:
    """Without BROKER_URL both processes use the single Redis, and with it the address that it names."""
    assert compose["frontend"]["environment"]["REDIS_URL"] == "redis://redis:6379/0"
    text = filled(
        (ROOT / "compose.yaml").read_text().replace("${BROKER_URL:-redis://redis:6379/0}", "redis+cluster://c")
    )
    services = parse(text).to_dict()["services"]
    assert [services[name]["environment"]["REDIS_URL"] for name in ("frontend", "worker")] == ["redis+cluster://c"] * 2


def test_nginx_matches_the_service() -> None:
    """The proxy does not buffer, accepts bodies as large as the service accepts, and waits longer than any run."""
    config = (ROOT / "deploy/nginx.conf").read_text()
    values = dict(re.findall(r"^\s*(\w+) ([^;]+);", config, flags=re.MULTILINE))
    assert values["proxy_buffering"] == "off"
    assert values["proxy_http_version"] == "1.1"
    assert values["gzip"] == "off"
    largest_bytes = int(values["client_max_body_size"].removesuffix("m")) << 20
    assert largest_bytes == Settings.model_fields["max_body_bytes"].default
    longest_s = sum(Settings.model_fields[field].default for field in ("queue_timeout_s", "run_timeout_s"))
    assert int(values["proxy_read_timeout"].removesuffix("s")) > longest_s
    assert "non_idempotent" not in values["proxy_next_upstream"]


def named_metrics(guide: str) -> set[str]:
    """Return the metrics that a guide names."""
    return set(re.findall(r"`(agentstream_[a-z_]+)", (ROOT / f"deploy/guides/{guide}.md").read_text()))


def test_the_operations_guide_explains_every_metric() -> None:
    """The operations guide explains each metric of the service, and the other guides name no others."""
    metrics = {metric.name for metric in (*metric_names.FRONTEND_METRICS, *metric_names.WORKER_METRICS)}
    assert named_metrics("operations") == metrics
    for guide in OPERATORS_GUIDES:
        assert named_metrics(guide) <= metrics


def test_the_operations_guide_quotes_real_log_lines() -> None:
    """Each log line in the table of the operations guide stands in the source; ``%s`` and … stand for other text."""
    table = (ROOT / "deploy/guides/operations.md").read_text().partition("| log line | when |\n|---|---|\n")[2]
    quoted = re.findall(r"(?m)^\| `([^`]+)` \|", table.partition("\n\n")[0])
    source = "".join(path.read_text() for path in (ROOT / "service").rglob("*.py"))
    assert quoted
    for line in quoted:
        exact = "%s" not in line and "…" not in line
        parts = [f'"{line}"'] if exact else [part.strip() for part in re.split("%s|…", line) if part.strip()]
        assert [part for part in parts if part not in source] == [], line


def test_requirements_name_no_host() -> None:
    """Every line of every requirements file is a pin or a hash, and not an index, an address or a path."""
    assert [path.name for path in REQUIREMENTS] == ["build.txt", "dev.txt", "openjarvis.txt", "run.txt", "runtime.txt"]
    for path in REQUIREMENTS:
        for line in path.read_text().splitlines():
            assert PIN.fullmatch(line) or HASH.fullmatch(line), f"{path.name}: {line}"


def test_requirements_agree() -> None:
    """The packages in the image have the same versions as those of the tests."""
    tested = pins(ROOT / "deploy/requirements/dev.txt")
    for name in ("build.txt", "run.txt", "runtime.txt"):
        assert pins(ROOT / "deploy/requirements" / name).items() <= tested.items()


def test_every_dependency_is_pinned() -> None:
    """Each dependency in pyproject.toml is pinned in the requirements files that are installed for it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    jarvis = extras.pop("openjarvis")  # tested without its dependencies, so it has its own file
    groups = project["dependency-groups"]
    runtime = project["project"]["dependencies"]
    tools = [*groups["build"], *(line for line in groups["dev"] if isinstance(line, str))]
    everything = [*runtime, *itertools.chain(*extras.values()), *tools]
    files = {
        "runtime.txt": [*runtime, *extras["openai"], *extras["otel"]],
        "run.txt": [*runtime, *extras["embedded"], *extras["openai"]],
        "build.txt": groups["build"],
        "dev.txt": everything,
        "openjarvis.txt": jarvis,
    }
    for file, wanted in files.items():
        names = {match[0].lower() for line in wanted if (match := re.match(r"[\w-]+", line))}
        assert names <= pins(ROOT / "deploy/requirements" / file).keys()


def test_the_image_is_pinned_and_not_root() -> None:
    """The image installs only packages with a hash, without a cache, and runs as a user with a number."""
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    installs = re.findall(r"\binstall (?!--no-deps)[^\\&\n]+", dockerfile)
    assert len(installs) == 2
    assert all("--require-hashes" in install for install in installs)
    assert "PIP_NO_CACHE_DIR=1" in dockerfile
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", dockerfile, flags=re.MULTILINE)


def test_the_image_can_copy_its_files() -> None:
    """Everything that the Dockerfile copies exists and is allowed by .dockerignore."""
    let_through = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "deploy/Dockerfile").read_text(), flags=re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert any(source == name or source.startswith(f"{name}/") for name in let_through), source
