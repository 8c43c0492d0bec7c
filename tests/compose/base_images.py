"""Stand-ins for the images that compose.yaml and the Dockerfile name, made of Debian packages."""

from pathlib import Path

from tests.compose.machine import Machine

BASES = Path(__file__).with_name("bases")
IMAGES = {"python:3.13-slim-trixie": "python", "redis:8": "redis", "nginx:1.30-alpine": "nginx"}


def make(machine: Machine, folder: Path) -> None:
    """Make the stand-ins that are missing. ``folder`` has the packed Debian, and is visible to the engine."""
    missing = [tag for tag in IMAGES if machine.try_run("docker", "image", "inspect", tag).returncode]
    if not missing:
        return
    machine.run("docker", "import", "--change", 'CMD ["bash"]', str(folder / "debian.tar"), "standin-debian")
    context = folder / "bases"
    context.mkdir(exist_ok=True)
    for source in BASES.iterdir():
        (context / source.name).write_bytes(source.read_bytes())
    for tag in missing:
        recipe = context / f"{IMAGES[tag]}.dockerfile"
        machine.run("docker", "build", "--network", "host", "--tag", tag, "--file", str(recipe), str(context))
