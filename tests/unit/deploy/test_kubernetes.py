"""The Kubernetes manifests are valid, confined, and agree with the settings and the metrics."""

import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from agentstream.config import Settings, env_name
from agentstream.frontend.serve import LAST_REQUESTS_S
from agentstream.telemetry import names as metric_names

FOLDER = Path(__file__).parents[3] / "deploy/kubernetes"
VERSION = "1.30"  # the oldest supported; what is used here is older
Manifest = dict[str, Any]
ROLES = ("frontend", "worker")


def manifests() -> list[Manifest]:
    """Return every manifest."""
    return [manifest for path in sorted(FOLDER.glob("*.yaml")) for manifest in yaml.safe_load_all(path.read_text())]


def of(kind: str, role: str) -> Manifest:
    """Return a role's manifest of this kind."""
    found = [each for each in manifests() if (each["kind"], each["metadata"]["name"]) == (kind, f"agentstream-{role}")]
    assert len(found) == 1
    return found[0]


def pod(role: str) -> Manifest:
    """Return a role's pod."""
    spec: Manifest = of("Deployment", role)["spec"]["template"]["spec"]
    return spec


def container(role: str) -> Manifest:
    """Return a role's one container."""
    (only,) = pod(role)["containers"]
    assert isinstance(only, dict)
    return only


def environment(role: str) -> dict[str, str | None]:
    """Return a role's variables; None for those that come from a secret."""
    return {entry["name"]: entry.get("value") for entry in container(role)["env"]}


each_role = pytest.mark.parametrize("role", ROLES)


def test_every_manifest_is_valid() -> None:
    """Each manifest fits Kubernetes' own schema, unknown fields refused."""
    assert {manifest["kind"] for manifest in manifests()} == {
        "Deployment",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
    }
    for manifest in manifests():
        kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_a_wrong_manifest_is_noticed() -> None:
    """The check refuses a field that Kubernetes does not know."""
    wrong = of("Deployment", "worker")
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 75
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


@each_role
def test_every_variable_is_a_setting(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each container is started as what it is, with settings that exist and values they take."""
    assert container(role)["args"] == [role]
    assert environment(role).keys() <= {env_name(field) for field in Settings.model_fields}
    for name, value in environment(role).items():
        monkeypatch.setenv(name, value or "secret")
    Settings()


def test_secrets_go_where_they_are_needed() -> None:
    """Front ends never see the model server's key, nor workers the callers' keys."""
    assert "OPENAI_API_KEY" not in environment("frontend")
    assert "AGENTSTREAM_API_KEYS" not in environment("worker")


def test_the_guide_creates_the_secrets() -> None:
    """The commands of the operations guide create each secret that the pods require, with each of its keys."""
    guide = (FOLDER.parent / "guides/operations.md").read_text()
    created = set()
    for line in guide.replace("\\\n", "").splitlines():
        if line.startswith("kubectl create secret generic "):
            _, _, _, _, name, *arguments = shlex.split(line)
            created |= {(name, argument.split("=")[1]) for argument in arguments}
    sources = [
        entry["valueFrom"]["secretKeyRef"] for role in ROLES for entry in container(role)["env"] if "valueFrom" in entry
    ]
    assert created == {(source["name"], source["key"]) for source in sources if not source.get("optional")}


def test_ports_agree() -> None:
    """The front end listens where the container, its probes, the Service and the network policy say."""
    port = int(environment("frontend")["AGENTSTREAM_PORT"] or 0)
    assert environment("frontend")["AGENTSTREAM_HOST"] == "0.0.0.0"  # noqa: S104 -- inside a container
    assert container("frontend")["ports"] == [{"name": "http", "containerPort": port}]
    assert of("NetworkPolicy", "frontend")["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": port}]
    (service,) = (manifest for manifest in manifests() if manifest["kind"] == "Service")
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    probes = {name: container("frontend")[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert [probe["path"] for probe in probes.values()] == ["/health/live", "/health/live", "/health/ready"]


def test_a_workers_metrics_can_be_had() -> None:
    """The worker's metrics and health are served where its probes, its annotations and the network policy say."""
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
    """Kubernetes waits longer for a pod to end than its preStop and its drain take."""
    drain_s = float(environment(role)["AGENTSTREAM_DRAIN_TIMEOUT_S"] or 0)
    pre_stop = container(role).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
    assert pod(role)["terminationGracePeriodSeconds"] > float(pre_stop[1]) + LAST_REQUESTS_S + drain_s + 5


@each_role
def test_every_pod_is_confined(role: str) -> None:
    """Each pod runs without root, writable root, capabilities, privileges or a token of the cluster's."""
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
    """Deployment, budget and network policy of a role select exactly its pods' labels."""
    labels = of("Deployment", role)["spec"]["template"]["metadata"]["labels"]
    assert of("Deployment", role)["spec"]["selector"]["matchLabels"] == labels
    assert of("PodDisruptionBudget", role)["spec"]["selector"]["matchLabels"] == labels
    assert of("NetworkPolicy", role)["spec"]["podSelector"]["matchLabels"] == labels


def test_workers_scale_by_a_metric_that_exists() -> None:
    """The autoscaler follows the queue's gauge, asks for fewer jobs than a worker has slots, and scales the workers."""
    spec = of("HorizontalPodAutoscaler", "worker")["spec"]
    assert spec["scaleTargetRef"]["name"] == of("Deployment", "worker")["metadata"]["name"]
    external = spec["metrics"][0]["external"]
    assert external["metric"]["name"] == metric_names.QUEUED
    assert external["metric"]["selector"]["matchLabels"] == {"queue": Settings.model_fields["queue"].default}
    assert int(external["target"]["averageValue"]) < int(environment("worker")["AGENTSTREAM_CONCURRENCY"] or 0)
