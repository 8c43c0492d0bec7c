"""Checks of the profiles `sentinel` and `cluster`: a primary is lost, everything is restarted and started anew."""

import re
from collections.abc import Callable

from tests.compose.deployment import ROOT, Deployment

GUIDE = ROOT / "deploy/guides/operations.md"
QUEUE = "agentstream:jobs:default"
SERVERS = {
    "sentinel": [f"{kind}-{number}" for kind in ("redis", "sentinel") for number in (1, 2, 3)],
    "cluster": [*(f"cluster-{number}" for number in range(1, 7)), "cluster-keeper"],
}


def _cli(deployment: Deployment, service: str, *command: str) -> str:
    """Return the answer of a server or a sentinel, or an empty text if it does not answer."""
    done = deployment.try_run("docker", "compose", "exec", "--no-TTY", service, "redis-cli", "-e", *command)
    return "" if done.returncode else done.stdout.strip()


def _sentinels_primary(deployment: Deployment) -> tuple[str, bool]:
    """Return the service that all sentinels call the primary, or an empty text, and whether a replica follows it."""
    question = ("-p", "26379", "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "agentstream")
    named = {_cli(deployment, f"sentinel-{number}", *question).partition("\n")[0] for number in (1, 2, 3)}
    if len(named) > 1 or "" in named:
        return "", False
    (primary,) = named
    replication = _cli(deployment, primary, "INFO", "replication")
    return primary if "role:master" in replication else "", "min_slaves_good_slaves:0" not in replication


def _queues_primary(deployment: Deployment) -> tuple[str, bool]:
    """Return the service that has the slot of the queue, or an empty text, and whether a replica follows it."""
    for number in range(1, 7):
        if not (lines := _cli(deployment, f"cluster-{number}", "CLUSTER", "NODES").splitlines()):
            continue
        nodes = [words for line in lines if "fail" not in (words := line.split())[2]]
        slot = int(_cli(deployment, f"cluster-{number}", "CLUSTER", "KEYSLOT", QUEUE))
        for words in nodes:
            ranges = [word.partition("-") for word in words[8:]]
            if any(int(first) <= slot <= int(last or first) for first, _, last in ranges):
                return words[1].rpartition(",")[2], any(other[3] == words[0] for other in nodes)
    return "", False


PRIMARY: dict[str, Callable[[Deployment], tuple[str, bool]]] = {
    "sentinel": _sentinels_primary,
    "cluster": _queues_primary,
}


def _primary(deployment: Deployment, profile: str) -> str:
    """Return the service that is the primary, or an empty text."""
    return PRIMARY[profile](deployment)[0]


def _is_replicated(deployment: Deployment, profile: str) -> bool:
    """Return whether there is a primary, and a replica follows it."""
    return all(PRIMARY[profile](deployment))


def _start(deployment: Deployment, profile: str) -> None:
    """Start everything with the lines that the guide has for .env."""
    lines = re.findall(rf"(?m)^COMPOSE_PROFILES={profile}\nBROKER_URL=\S+$", GUIDE.read_text())
    (deployment.folder / ".env").write_text(f"{lines[0]}\n")
    deployment.compose("build", "frontend")  # nothing to do unless this group runs alone
    deployment.up()
    url = lines[0].partition("BROKER_URL=")[2]
    assert deployment.environment("worker")["REDIS_URL"] == url
    deployment.until(lambda: _is_replicated(deployment, profile), "the primary has a replica")


def _a_primary_is_lost(deployment: Deployment, profile: str) -> str:
    """Kill the container of the primary under load, and start it again when another primary serves."""
    _start(deployment, profile)
    lost = _primary(deployment, profile)
    (container,) = deployment.containers(lost)
    with deployment.load() as load:
        deployment.until_asked(load)
        deployment.run("docker", "kill", container)  # Docker does not start it again by itself
        deployment.until(lambda: _primary(deployment, profile) not in {"", lost}, f"{lost} has a successor", 60)
        deployment.until_asked(load)
        deployment.run("docker", "start", container)
        deployment.until_asked(load)
    outcomes = load.report["outcomes"]
    assert set(outcomes) <= {"whole", "http 503"}, f"{outcomes}\n" + "\n".join(load.report["failures"])
    assert outcomes["whole"] > outcomes.get("http 503", 0)
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))


def _everything_is_restarted(deployment: Deployment, profile: str) -> str:
    """Restart all servers, then remove and start all containers: a run that ended before can still be read."""
    status, answer = deployment.ask("5 words, please")
    assert status == 200, answer
    run_id = answer.partition('"id":"')[2].partition('"')[0]
    before = _primary(deployment, profile)
    changes: dict[str, Callable[[], object]] = {
        "restart": lambda: deployment.compose("restart", *SERVERS[profile]),
        "down and up": lambda: (deployment.compose("down"), deployment.up()),
    }
    for name, change in changes.items():
        change()
        deployment.until(lambda: _is_replicated(deployment, profile), f"there is a primary with a replica after {name}")
        deployment.until(lambda: deployment.ask("1 word, please")[0] == 200, f"a question is answered after {name}", 60)
        status, answer = deployment.call(f"/v1/chat/completions/{run_id}")
        assert (status, "5 words, please" in answer) == (200, True), f"after {name}: {status} {answer}"
    return f"the primary was {before}, and is {_primary(deployment, profile)}"


def sentinels_replace_a_lost_primary(deployment: Deployment) -> str:
    """The profile `sentinel` starts, its primary is killed: streams end whole, and later requests are answered."""
    deployment.down()
    return _a_primary_is_lost(deployment, "sentinel")


def sentinels_survive_restarts(deployment: Deployment) -> str:
    """The servers and sentinels of the profile keep their roles and data over a restart and over `down` and `up`."""
    return _everything_is_restarted(deployment, "sentinel")


def a_cluster_replaces_a_lost_primary(deployment: Deployment) -> str:
    """The profile `cluster` starts, the queue's primary is killed: streams end whole, later requests are answered."""
    deployment.down()
    return _a_primary_is_lost(deployment, "cluster")


def a_cluster_survives_restarts(deployment: Deployment) -> str:
    """The nodes of the profile find each other again after a restart and after `down` and `up`, with their data."""
    return _everything_is_restarted(deployment, "cluster")


def the_single_redis_is_used_again(deployment: Deployment) -> None:
    """Without the lines in .env everything uses the single Redis again, and only its containers run."""
    deployment.down()
    (deployment.folder / ".env").unlink()
    deployment.up()
    assert set(deployment.compose("ps", "--services").split()) == {"nginx", "frontend", "worker", "redis"}
    assert deployment.ask("1 word, please")[0] == 200


CHECKS = (
    sentinels_replace_a_lost_primary,
    sentinels_survive_restarts,
    a_cluster_replaces_a_lost_primary,
    a_cluster_survives_restarts,
    the_single_redis_is_used_again,
)
