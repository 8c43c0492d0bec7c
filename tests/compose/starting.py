"""Checks of a deployment that has just started."""

import json
import re

from tests.compose.deployment import Deployment
from tests.doctor_report import complaints

FRONTENDS = WORKERS = 3


def compose_accepts_the_file(deployment: Deployment) -> None:
    """compose.yaml is accepted, with the profile of the observers too."""
    deployment.compose("--profile", "observability", "config", "--quiet")


def a_start_without_the_image_builds_it(deployment: Deployment) -> str:
    """A first `up` builds the image by the Dockerfile, asks no registry for it, and everything gets healthy."""
    deployment.try_run("docker", "image", "rm", "--force", deployment.image)  # of an earlier time
    output = deployment.up(frontends=FRONTENDS, workers=WORKERS)
    assert not re.search(r"(?i)(frontend|worker|agentstream)\S* +pull", output), output
    size = int(deployment.run("docker", "image", "inspect", "--format", "{{.Size}}", deployment.image))
    return f"{size / 1e6:.0f} MB"


def an_answer_streams_through_nginx(deployment: Deployment) -> None:
    """A streamed answer arrives whole through nginx: role first, usage, [DONE]."""
    status, answer = deployment.ask("7 words, please")
    messages = re.findall(r"^data: (.*)$", answer, flags=re.MULTILINE)
    assert status == 200, answer
    assert messages[-1] == "[DONE]"
    first, *chunks = [json.loads(message) for message in messages[:-1]]
    assert first["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", ()))
    assert text == "0 1 2 3 4 5 6 7 words, please"
    assert "usage" in chunks[-1], chunks[-1]


def containers_are_confined(deployment: Deployment) -> None:
    """Every container has a read-only root, no capabilities, no new privileges, and is not root."""
    probe = (
        "for d in / /opt /app /etc /var /usr /root; do (echo > $d/.probe) 2>/dev/null && echo writable $d; done; "
        "grep -E '^(CapEff|NoNewPrivs)' /proc/self/status | tr -d '\\t\\n'; echo; id -u"
    )
    for service in ("nginx", "frontend", "worker", "redis"):
        lines = deployment.compose("exec", "--no-TTY", service, "sh", "-c", probe).split()
        assert lines[0] == "CapEff:0000000000000000NoNewPrivs:1", f"{service}: {lines}"
        assert lines[1] != "0", service


def limits_are_in_effect(deployment: Deployment) -> None:
    """The limits of memory file systems and open files of compose.yaml are in effect inside the containers."""
    for service in ("nginx", "frontend", "worker"):
        output = deployment.compose("exec", "--no-TTY", service, "sh", "-c", "ulimit -n; df -m /tmp | tail -n 1")
        files, _, size_mb, *_ = output.split()
        assert (files, size_mb) == ("16384", "256"), f"{service}: {output}"


def health_and_metrics_are_not_public(deployment: Deployment) -> None:
    """Through nginx nobody outside reaches /health or /metrics of the front ends."""
    for path in ("/health/ready", "/health/live", "//health/ready", "/health%2Fready", "/metrics"):
        status, answer = deployment.call(path)
        assert (status, json.loads(answer)["error"]["code"]) == (404, "not_found"), f"{path}: {status} {answer}"


def doctor_finds_no_faults(deployment: Deployment) -> None:
    """`agentstream doctor` finds nothing to change in this deployment."""
    doctor = ("agentstream", "doctor", "--json", "--url", "http://nginx:8080")
    assert complaints(deployment.compose("exec", "--no-TTY", "frontend", *doctor)) == {}


def nothing_is_replaced_without_a_change(deployment: Deployment) -> None:
    """`up` five times without a change, with and without a build, replaces no container and leaves no image behind."""
    before = {service: deployment.containers(service) for service in ("nginx", "frontend", "worker", "redis")}
    dangling = deployment.dangling_images()
    for attempt in range(5):
        build = ["--build"] if attempt % 2 else []
        deployment.compose(
            *("up", "--detach", "--scale", f"frontend={FRONTENDS}", "--scale", f"worker={WORKERS}"), *build
        )
    after = {service: deployment.containers(service) for service in before}
    assert after == before, f"{before}\n{after}"
    assert deployment.dangling_images() == dangling


def nginx_has_nothing_to_report(deployment: Deployment) -> None:
    """Nginx accepts its configuration and limits without a warning."""
    lines = deployment.logs("nginx")
    complaints = [line for line in lines if re.search(r"\[(warn|error|crit|alert|emerg)\]", line)]
    assert not complaints, "\n".join(complaints)


CHECKS = (
    compose_accepts_the_file,
    a_start_without_the_image_builds_it,
    an_answer_streams_through_nginx,
    containers_are_confined,
    limits_are_in_effect,
    health_and_metrics_are_not_public,
    doctor_finds_no_faults,
    nginx_has_nothing_to_report,
    nothing_is_replaced_without_a_change,
)
