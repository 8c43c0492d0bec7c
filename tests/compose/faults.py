"""Checks that kill processes under load. Some clients notice; each of them learns what happened."""

from collections.abc import Callable

from tests.compose.deployment import Deployment, Load


def _what_clients_saw(deployment: Deployment, fault: Callable[[], object], allowed: set[str]) -> tuple[str, Load]:
    """Cause a fault under load, and return the outcomes. Asserts that there are only ``allowed`` ones."""
    with deployment.load() as load:
        deployment.until_asked(load)
        fault()
        deployment.until_asked(load)
    outcomes = load.report["outcomes"]
    assert set(outcomes) <= allowed, f"{outcomes}\n" + "\n".join(load.report["failures"])
    assert outcomes["whole"]
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())), load


def _kill_one(deployment: Deployment, service: str) -> None:
    container = deployment.containers(service)[0]
    deployment.kill(container)
    deployment.until(
        lambda: deployment.inspect(container, "{{.RestartCount}} {{.State.Health.Status}}") == "1 healthy",
        f"{service} was started again and is healthy",
    )


def a_worker_is_killed(deployment: Deployment) -> str:
    """A worker dies of SIGKILL: each of its clients is served by another or told, and the worker comes back."""
    saw, _ = _what_clients_saw(
        deployment, lambda: _kill_one(deployment, "worker"), {"whole", "told that the worker was lost", "http 500"}
    )
    return saw


def a_front_end_is_killed(deployment: Deployment) -> str:
    """A front end dies of SIGKILL: streams that break can be resumed, no agent runs twice, and it comes back."""
    saw, load = _what_clients_saw(
        deployment, lambda: _kill_one(deployment, "frontend"), {"whole", "resumed", "http 502"}
    )
    starts = deployment.starts()
    assert [question for question in load.report["questions"] if starts[question] > 1] == []
    return saw


def redis_is_restarted(deployment: Deployment) -> str:
    """Redis is restarted: open streams end whole, and only requests that come meanwhile may be told to try again."""
    saw, _ = _what_clients_saw(deployment, lambda: deployment.compose("restart", "redis"), {"whole", "http 503"})
    return saw


CHECKS = (a_worker_is_killed, a_front_end_is_killed, redis_is_restarted)
