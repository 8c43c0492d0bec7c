"""Checks that replace processes under load: no request may fail, no stream may break, no agent may run twice."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.compose.deployment import Deployment

ENOUGH = 1000  # requests in all of these checks together
ROLLING_UPDATE = "deploy/rolling-update.sh"


@dataclass
class Total:
    """What became of all requests of these checks, and how often agents ran for them."""

    outcomes: "Counter[str]" = field(default_factory=Counter)
    questions: list[str] = field(default_factory=list)


total = Total()


def under_load(deployment: Deployment, action: Callable[[], object], *, may_turn_away: bool = False) -> str:
    """Run ``action`` while clients ask; assert that every answer was whole, and return the counts.

    ``may_turn_away`` is for a time in which nobody listens. The clients then connect again; nothing was sent.
    """
    with deployment.load() as load:
        deployment.until_asked(load)
        action()
    report = load.report
    total.outcomes.update(report["outcomes"])
    total.questions += report["questions"]
    assert set(report["outcomes"]) == {"whole"}, f"{report['outcomes']}\n" + "\n".join(report["failures"])
    assert may_turn_away or not report["turned_away"], f"{report['turned_away']} connections were refused"
    turned_away = f", {report['turned_away']} connections were refused and tried again" if may_turn_away else ""
    return f"{report['outcomes']['whole']} whole answers{turned_away}"


def front_ends_are_added_and_removed(deployment: Deployment) -> str:
    """2, then 5, then 2 front ends: no request fails."""

    def scale() -> None:
        for frontends in (2, 5, 2):
            deployment.up(frontends=frontends, workers=3)

    return under_load(deployment, scale)


def each_front_end_is_replaced_in_turn(deployment: Deployment) -> str:
    """Each front end is stopped, removed and started again, one after the other: no request fails."""

    def replace() -> None:
        for container in deployment.containers("frontend"):
            deployment.run("docker", "stop", container)
            deployment.run("docker", "rm", container)
            deployment.up(frontends=2, workers=3)

    return under_load(deployment, replace)


def a_front_end_is_stopped(deployment: Deployment) -> str:
    """`docker stop` of one of three front ends: no request fails."""
    deployment.up(frontends=3, workers=3)
    answer = under_load(deployment, lambda: deployment.run("docker", "stop", deployment.containers("frontend")[0]))
    deployment.up(frontends=2, workers=3)
    return answer


def a_worker_is_stopped(deployment: Deployment) -> str:
    """`docker stop` of one of three workers: no request fails."""
    answer = under_load(deployment, lambda: deployment.run("docker", "stop", deployment.containers("worker")[0]))
    deployment.up(frontends=2, workers=3)
    return answer


def nginx_is_restarted(deployment: Deployment) -> str:
    """A restart of nginx breaks no stream."""
    return under_load(deployment, lambda: deployment.compose("restart", "nginx"), may_turn_away=True)


def nginx_reads_its_file_again(deployment: Deployment) -> str:
    """A reload of nginx refuses nothing and breaks no stream."""
    return under_load(deployment, lambda: deployment.compose("kill", "--signal", "HUP", "nginx"))


def everything_is_updated(deployment: Deployment) -> str:
    """A rolling update to a new image: no request fails, every process is new, and the old image has a name."""
    old, dangling = deployment.image_id(), deployment.dangling_images()
    before = deployment.containers("worker") + deployment.containers("frontend")
    changed = deployment.folder / "service/agentstream/py.typed"
    changed.write_text(changed.read_text() + "# a change\n")
    answer = under_load(deployment, lambda: deployment.run(ROLLING_UPDATE))
    after = deployment.containers("worker") + deployment.containers("frontend")
    assert len(after) == len(before)
    assert not set(after) & set(before), f"{before}\n{after}"
    assert {deployment.inspect(container, "{{.Image}}") for container in after} == {deployment.image_id()} != {old}
    assert deployment.image_id(":previous") == old
    assert deployment.dangling_images() == dangling
    output = deployment.up(frontends=2, workers=3)
    kept = deployment.containers("worker") + deployment.containers("frontend")
    assert sorted(after) == sorted(kept), output
    return answer


def everything_goes_back(deployment: Deployment) -> str:
    """Updates without a build give every process the previous image and new settings: no request fails."""
    old = deployment.image_id(":previous")
    deployment.run("docker", "tag", f"{deployment.image}:previous", deployment.image)
    rounds = 0
    while not rounds or total.outcomes.total() < ENOUGH:
        rounds += 1
        (deployment.folder / ".env").write_text(f"AGENTSTREAM_MAX_QUEUED={1000 + rounds}\n")
        under_load(deployment, lambda: deployment.run(ROLLING_UPDATE, "--no-build"))
        containers = deployment.containers("worker") + deployment.containers("frontend")
        assert {deployment.inspect(container, "{{.Image}}") for container in containers} == {old}
        assert deployment.environment("frontend")["AGENTSTREAM_MAX_QUEUED"] == str(1000 + rounds)
    (deployment.folder / ".env").unlink()
    return f"{rounds} updates"


def no_agent_ran_twice(deployment: Deployment) -> str:
    """In all of these updates together every one of at least 1,000 requests was answered, by exactly one run."""
    starts = deployment.starts()
    counts = Counter(starts[question] for question in total.questions)
    assert set(counts) == {1}, f"runs per request: {dict(counts)}"
    assert set(total.outcomes) == {"whole"}, dict(total.outcomes)
    assert total.outcomes["whole"] >= ENOUGH
    return f"{counts[1]} requests, {counts[1]} runs"


CHECKS = (
    front_ends_are_added_and_removed,
    each_front_end_is_replaced_in_turn,
    a_front_end_is_stopped,
    a_worker_is_stopped,
    nginx_is_restarted,
    nginx_reads_its_file_again,
    everything_is_updated,
    everything_goes_back,
    no_agent_ran_twice,
)
