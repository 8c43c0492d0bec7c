"""The Kubernetes manifests are valid and confined, and match the settings and the metrics."""

import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from agentstream.config import Settings, env_name
from agentstream.protocol.keys import Keys
from agentstream.telemetry import names as metric_names

FOLDER = Path(__file__).parents[3] / "deploy/kubernetes"
VERSION = "1.30"  # the oldest supported version; the manifests use only older features
Manifest = dict[str, Any]
ROLES = ("frontend", "worker")


def manifests(pattern: str = "*.yaml") -> list[Manifest]:
    """Return all manifests in the files that match."""
    return [manifest for path in sorted(FOLDER.glob(pattern)) for manifest in yaml.safe_load_all(path.read_text())]


def of(kind: str, role: str) -> Manifest:
    """Return the manifest of this kind for a role."""
    found = [each for each in manifests() if (each["kind"], each["metadata"]["name"]) == (kind, f"agentstream-{role}")]
    assert len(found) == 1
    return found[0]


def pod(role: str) -> Manifest:
    """Return the pod specification of a role."""
    spec: Manifest = of("Deployment", role)["spec"]["template"]["spec"]
    return spec


def container(role: str) -> Manifest:
    """Return the only container of a role."""
    (only,) = pod(role)["containers"]
    assert isinstance(only, dict)
    return only


def environment(role: str) -> dict[str, str | None]:
    """Return the environment variables of a role, with None for those that come from a secret."""
    return {entry["name"]: entry.get("value") for entry in container(role)["env"]}


def started_with(role: str) -> dict[str, str]:
    """Return the environment variables of a role, with examples for those that come from a secret."""
    examples = {"REDIS_URL": "redis://redis:6379/0", "OPENAI_BASE_URL": "https://models.example/v1"}
    return {name: value or examples.get(name, "secret") for name, value in environment(role).items()}


each_role = pytest.mark.parametrize("role", ROLES)


def test_every_manifest_is_valid() -> None:
    """Each manifest matches the schema of Kubernetes, which refuses unknown fields."""
    assert {manifest["kind"] for manifest in manifests()} == {
        "Deployment",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
    }
    for manifest in [*manifests(), *manifests("redis/*.yaml")]:
        kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_a_wrong_manifest_is_refused() -> None:
    """The validation refuses a field that Kubernetes does not know."""
    wrong = of("Deployment", "worker")
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 75
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


@each_role
def test_every_variable_is_a_setting(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each container starts with its role, with existing settings and valid values."""
    assert container(role)["args"] == [role]
    assert environment(role).keys() <= {env_name(field) for field in Settings.model_fields}
    for name, value in started_with(role).items():
        monkeypatch.setenv(name, value)
    Settings()


def service_links(service: str, port: int) -> dict[str, str]:
    """Return the variables that Kubernetes sets for a Service with one port called http."""
    name, address = service.upper().replace("-", "_"), "10.96.14.7"
    url = f"tcp://{address}:{port}"
    return {
        f"{name}_SERVICE_HOST": address,
        f"{name}_SERVICE_PORT": str(port),
        f"{name}_SERVICE_PORT_HTTP": str(port),
        f"{name}_PORT": url,
        f"{name}_PORT_{port}_TCP": url,
        f"{name}_PORT_{port}_TCP_PROTO": "tcp",
        f"{name}_PORT_{port}_TCP_PORT": str(port),
        f"{name}_PORT_{port}_TCP_ADDR": address,
    }


@each_role
def test_services_do_not_change_the_settings(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Service of the namespace changes a setting of a pod, even in a cluster that always sets service links."""
    assert pod(role)["enableServiceLinks"] is False
    explicit = started_with(role)
    for name, value in explicit.items():
        monkeypatch.setenv(name, value)
    expected = Settings()
    parts = [env_name(field).lower().split("_") for field in Settings.model_fields]
    services = {"-".join(words[:count]) for words in parts for count in range(1, len(words) + 1)}
    assert {"agentstream", "agentstream-metrics", "redis", "openai"} <= services
    for service in services:
        for name, value in service_links(service, 80).items():
            monkeypatch.setenv(name, explicit.get(name, value))
    assert Settings() == expected


def test_clients_do_not_see_the_texts_of_errors() -> None:
    """The workers hide the texts of their agents' errors from clients."""
    assert environment("worker")["AGENTSTREAM_ERROR_DETAILS"] == "hidden"


def test_secrets_go_where_they_are_needed() -> None:
    """Front ends do not get the key of the model server, and workers do not get the keys of callers."""
    assert "OPENAI_API_KEY" not in environment("frontend")
    assert "AGENTSTREAM_API_KEYS" not in environment("worker")


def test_the_guide_creates_the_secrets() -> None:
    """The commands of the operations guide create each secret that pods or KEDA require, with each of its keys."""
    guide = (FOLDER.parent / "guides/operations.md").read_text()
    created = set()
    for line in guide.replace("\\\n", "").splitlines():
        if line.startswith("kubectl create secret generic "):
            _, _, _, _, name, *arguments = shlex.split(line)
            created |= {(name, argument.split("=")[1]) for argument in arguments}
    sources = [
        entry["valueFrom"]["secretKeyRef"] for role in ROLES for entry in container(role)["env"] if "valueFrom" in entry
    ]
    logins = [manifest for manifest in manifests("keda/*.yaml") if manifest["kind"] == "TriggerAuthentication"]
    sources += [entry for login in logins for entry in login["spec"]["secretTargetRef"]]
    assert created == {(source["name"], source["key"]) for source in sources if not source.get("optional")}


def test_ports_agree() -> None:
    """The front end listens on the port that the container, its probes, the Service and the network policy name."""
    port = int(environment("frontend")["AGENTSTREAM_PORT"] or 0)
    assert environment("frontend")["AGENTSTREAM_HOST"] == "0.0.0.0"  # noqa: S104 -- inside a container
    assert container("frontend")["ports"] == [{"name": "http", "containerPort": port}]
    assert of("NetworkPolicy", "frontend")["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": port}]
    (service,) = (manifest for manifest in manifests() if manifest["kind"] == "Service")
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    probes = {name: container("frontend")[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert [probe["path"] for probe in probes.values()] == ["/health/live", "/health/live", "/health/ready"]


def test_the_metrics_of_a_worker_can_be_scraped() -> None:
    """A worker serves metrics and health on the port that its probes, its annotations and the network policy name."""
    port = int(environment("worker")["AGENTSTREAM_METRICS_PORT"] or 0)
    assert environment("worker")["AGENTSTREAM_METRICS_HOST"] == "0.0.0.0"  # noqa: S104 -- inside a container
    assert container("worker")["ports"] == [{"name": "metrics", "containerPort": port}]
    assert of("NetworkPolicy", "worker")["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": port}]
    annotations = of("Deployment", "worker")["spec"]["template"]["metadata"]["annotations"]
    assert (annotations["prometheus.io/port"], annotations["prometheus.io/path"]) == (str(port), "/metrics")
    probes = {name: container("worker")[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {probe["port"] for probe in probes.values()} == {"metrics"}
    assert [probe["path"] for probe in probes.values()] == ["/health/live", "/health/live", "/health/ready"]


@each_role
def test_a_stop_leaves_time_to_drain(role: str) -> None:
    """Kubernetes waits longer for the end of a pod than its stop delay and its drain need."""
    drain_s = float(environment(role)["AGENTSTREAM_DRAIN_TIMEOUT_S"] or 0)
    delay_s = float(environment(role).get("AGENTSTREAM_STOP_DELAY_S") or 0)
    assert pod(role)["terminationGracePeriodSeconds"] >= delay_s + drain_s + 10


def test_a_pod_serves_until_proxies_know_that_it_stops() -> None:
    """A front end serves on after SIGTERM, because Kubernetes sends it before every proxy has left the pod out."""
    assert float(environment("frontend")["AGENTSTREAM_STOP_DELAY_S"] or 0) >= 5


@each_role
def test_every_pod_is_confined(role: str) -> None:
    """Each pod runs without root, a writable root, capabilities, privileges or a token of the cluster."""
    assert pod(role)["securityContext"]["runAsNonRoot"] is True
    assert pod(role)["automountServiceAccountToken"] is False
    assert container(role)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= container(role)["resources"]["requests"].keys()
    assert "memory" in container(role)["resources"]["limits"]


@each_role
def test_selectors_find_their_pods(role: str) -> None:
    """Deployment, disruption budget and network policy of a role select exactly the labels of its pods."""
    labels = of("Deployment", role)["spec"]["template"]["metadata"]["labels"]
    assert of("Deployment", role)["spec"]["selector"]["matchLabels"] == labels
    assert of("PodDisruptionBudget", role)["spec"]["selector"]["matchLabels"] == labels
    assert of("NetworkPolicy", role)["spec"]["podSelector"]["matchLabels"] == labels


def test_workers_scale_by_a_metric_that_exists() -> None:
    """The autoscaler scales workers by the gauge of the queue, and targets fewer jobs than a worker has slots."""
    spec = of("HorizontalPodAutoscaler", "worker")["spec"]
    assert spec["scaleTargetRef"]["name"] == of("Deployment", "worker")["metadata"]["name"]
    external = spec["metrics"][0]["external"]
    assert external["metric"]["name"] == metric_names.QUEUED
    assert external["metric"]["selector"]["matchLabels"] == {"queue": Settings.model_fields["queue"].default}
    assert int(external["target"]["averageValue"]) < int(environment("worker")["AGENTSTREAM_CONCURRENCY"] or 0)


# Redis, which these manifests do not run


@each_role
def test_redis_may_be_reached(role: str) -> None:
    """Pods may reach servers and sentinels of Redis, and the policy for the pods of Redis lets the same pods in."""
    policy, budget = (next(each for each in manifests("redis/*.yaml") if each["kind"] == kind)
                      for kind in ("NetworkPolicy", "PodDisruptionBudget"))  # fmt: skip
    labels = policy["spec"]["podSelector"]["matchLabels"]
    assert budget["spec"]["selector"]["matchLabels"] == labels
    (out,) = [
        rule
        for rule in of("NetworkPolicy", role)["spec"]["egress"]
        if rule["to"] == [{"podSelector": {"matchLabels": labels}}]
    ]
    (into,) = [rule for rule in policy["spec"]["ingress"] if rule.get("ports") == out["ports"]]
    assert {port["port"] for port in out["ports"]} == {6379, 26379}
    (selector,) = into["from"]
    pods = of("Deployment", role)["spec"]["template"]["metadata"]["labels"]
    assert selector["podSelector"]["matchLabels"].items() <= pods.items()


def test_only_nodes_may_use_the_bus_of_a_cluster() -> None:
    """The port of the bus, which has no login, is open to the pods of Redis and to no pods of the service."""
    (policy,) = [each for each in manifests("redis/*.yaml") if each["kind"] == "NetworkPolicy"]
    bus = [rule for rule in policy["spec"]["ingress"] if {"protocol": "TCP", "port": 16379} in rule.get("ports", [])]
    assert [rule["from"] for rule in bus] == [[{"podSelector": policy["spec"]["podSelector"]}]]


@pytest.mark.parametrize(
    ("name", "trigger", "place"),
    [
        ("standalone", "redis-streams", "address"),
        ("sentinel", "redis-sentinel-streams", "addresses"),
        ("cluster", "redis-cluster-streams", "addresses"),
    ],
)
def test_keda_counts_the_jobs_of_the_queue(name: str, trigger: str, place: str) -> None:
    """Each file for KEDA scales the workers by the length of the default queue, with the trigger of its kind."""
    scaled, login = manifests(f"keda/{name}.yaml")
    assert scaled["spec"]["scaleTargetRef"]["name"] == of("Deployment", "worker")["metadata"]["name"]
    (only,) = scaled["spec"]["triggers"]
    metadata = only["metadata"]
    assert (only["type"], metadata["stream"]) == (trigger, Keys().jobs(Settings.model_fields["queue"].default))
    assert int(metadata["streamLength"]) < int(environment("worker")["AGENTSTREAM_CONCURRENCY"] or 0)
    assert "consumerGroup" not in metadata  # KEDA would count only the jobs that workers have taken
    assert {address.rpartition(":")[2] for address in metadata[place].split(",")} == {
        "26379" if name == "sentinel" else "6379"
    }
    assert ("sentinelMaster" in metadata) == (name == "sentinel")
    assert only["authenticationRef"]["name"] == login["metadata"]["name"]
