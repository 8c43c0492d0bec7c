"""Checks of what users see after a mistake, and of the end of everything."""

from tests.compose.deployment import Deployment
from tests.compose.updates import ROLLING_UPDATE


def _both(deployment: Deployment) -> dict[str, list[str]]:
    return {service: sorted(deployment.containers(service)) for service in ("worker", "frontend")}


def an_update_that_fails_is_undone(deployment: Deployment) -> None:
    """If new workers do not get healthy, the update says why, removes them, and the old processes serve."""
    before, image, dangling = _both(deployment), deployment.image_id(), deployment.dangling_images()
    changed = deployment.folder / "service/agentstream/py.typed"
    changed.write_text(changed.read_text() + "# another change\n")
    done = deployment.try_run(ROLLING_UPDATE, AGENTSTREAM_AGENT="no_such_module:agent")
    assert done.returncode == 1, done.stdout
    assert "did not get healthy" in done.stdout, done.stdout
    assert "no_such_module" in done.stdout, done.stdout
    assert _both(deployment) == before
    assert deployment.image_id() == image
    assert deployment.dangling_images() == dangling
    assert deployment.ask("2 words, please")[0] == 200


def a_missing_agent_folder_is_named(deployment: Deployment) -> None:
    """`up` with an AGENT_DIR that does not exist names the folder."""
    done = deployment.try_run("docker", "compose", "up", "--detach", AGENT_DIR="no_such_folder")
    assert done.returncode
    assert f"bind source path does not exist: {deployment.folder}/no_such_folder" in done.stdout, done.stdout


def a_folder_can_be_named_in_any_way(deployment: Deployment) -> None:
    """AGENT_DIR may be relative, with or without ./, or absolute."""
    for name in ("./agents", str(deployment.folder / "agents"), "agents"):
        deployment.up(AGENT_DIR=name)
        assert deployment.ask("2 words, please")[1].count("[DONE]") == 1


def old_versions_are_refused(deployment: Deployment) -> None:
    """The update says which Docker and which Compose it needs, if one of them is older."""
    before = _both(deployment)
    for wanted, answer in (("Docker engine is 19.03.15", "version --format"), ("Compose is 2.23.3", "compose version")):
        version = wanted.split()[-1]
        folder = deployment.folder / f"docker-{version}"
        folder.mkdir()
        script = f'case "$*" in "{answer}"*) echo {version} ;; *) PATH="$OLD_PATH" exec docker "$@" ;; esac\n'
        (folder / "docker").write_text(f"#!/bin/sh\n{script}")
        (folder / "docker").chmod(0o755)
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        done = deployment.try_run(ROLLING_UPDATE, PATH=f"{folder}:{path}", OLD_PATH=path)
        assert done.returncode == 1, done.stdout
        assert wanted in done.stdout, done.stdout
        assert "or newer is needed" in done.stdout, done.stdout
    assert _both(deployment) == before


def an_update_of_nothing_says_so(deployment: Deployment) -> None:
    """Without running processes the update says how to start them."""
    deployment.down()
    done = deployment.try_run(ROLLING_UPDATE)
    assert done.returncode == 1
    assert "docker compose up --detach --wait" in done.stdout, done.stdout


def a_missing_image_is_not_searched_elsewhere(deployment: Deployment) -> None:
    """Without the image and without a build, `up` says that the image is missing, and asks no registry."""
    deployment.run("docker", "image", "rm", "--force", deployment.image, f"{deployment.image}:previous")
    done = deployment.try_run("docker", "compose", "up", "--detach", "--no-build")
    assert done.returncode
    assert f"No such image: {deployment.image}" in done.stdout, done.stdout
    assert "ull" not in done.stdout, done.stdout


def nothing_is_left(deployment: Deployment) -> None:
    """`down --volumes` leaves no container, volume or network."""
    deployment.down()
    label = f"label=com.docker.compose.project={deployment.project}"
    for kind in (("ps", "--all"), ("volume", "ls"), ("network", "ls")):
        assert deployment.run("docker", *kind, "--quiet", "--filter", label) == ""


CHECKS = (
    a_folder_can_be_named_in_any_way,
    an_update_that_fails_is_undone,
    old_versions_are_refused,
    a_missing_agent_folder_is_named,
    an_update_of_nothing_says_so,
    a_missing_image_is_not_searched_elsewhere,
    nothing_is_left,
)
