"""A Docker engine of Debian 13 beside the machine's own: other namespaces, socket, data and process ids."""

import contextlib
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tests.compose.machine import Machine

RELEASE = "trixie"
PROGRAMS = ("debootstrap", "ip", "iptables", "nsenter", "pgrep", "pivot_root", "setpriv", "unshare")
PACKAGES = ("ca-certificates", "docker-buildx", "docker-cli", "docker-compose", "docker.io", "iproute2", "iptables")

Result = TypeVar("Result")

_NOT_NEEDED = ("doc", "info", "locale", "man")
_MIRROR_S = 20
_START_S = 60
_STOP_S = 30
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_CGROUPS = Path("/sys/fs/cgroup")


def why_not_here() -> str:
    """Return why this machine cannot run an engine of its own, or an empty text if it can."""
    if not Path("/etc/debian_version").exists():
        return "this is not a Debian machine"
    if os.geteuid() != 0:
        return "it needs root"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"these programs are missing: {', '.join(missing)}"
    for command in (
        ["unshare", "--mount", "--net", "--pid", "--fork", "true"],
        ["iptables", "--table", "nat", "--list"],
    ):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            return f"{' '.join(command)} fails: {done.stderr.strip()}"
    try:
        urllib.request.urlopen(f"{_mirror()}/dists/{RELEASE}/Release", timeout=_MIRROR_S).close()  # noqa: S310 -- http
    except (OSError, ValueError) as exc:
        return f"the Debian mirror of apt cannot be reached: {exc}"
    return ""


@contextlib.contextmanager
def own_engine(folder: Path) -> Iterator[Machine]:
    """Install and start an engine in this folder, and end everything that belongs to it afterwards.

    Every process of the engine is in one process namespace. The kernel ends that namespace when this process ends, for
    whatever reason.
    """
    root = folder / "engine"
    if not (root / "usr/sbin/dockerd").exists():
        install(root, folder)
    name = f"astest{os.getpid() % 100_000}"
    third = 64 + os.getpid() % 128
    gateway, address = f"10.98.{third}.1", f"10.98.{third}.2"
    command = [
        *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"),
        *("--propagation", "private", "sh", str(Path(__file__).with_name("start_engine.sh")), str(root), str(folder)),
        *(f"{address}/30", gateway, _mtu(), f"/{name}"),
    ]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "engine.log").open("w"))
        # A session of its own, so that a ctrl-C does not reach the engine before the containers are removed.
        engine = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        stack.callback(_remove_cgroups, name)
        stack.callback(engine.wait)
        stack.callback(engine.kill)
        init = _wait_for(lambda: _output("pgrep", "--parent", str(engine.pid)), "the engine's first process")
        stack.callback(_stop, engine, init)
        stack.enter_context(_way_out(name, init, gateway))
        environment = {"DOCKER_HOST": f"unix://{folder}/docker.sock", "DOCKER_CONFIG": str(folder / "config")}
        machine = Machine(
            docker=("nsenter", "--target", init, "--mount", "--net", "--pid", "--"),
            clients=("nsenter", "--target", init, "--net", "--"),
            environment=environment,
        )
        _wait_for(lambda: machine.try_run("docker", "version").returncode == 0, f"the engine; see {folder}/engine.log")
        yield machine


def install(root: Path, folder: Path) -> None:
    """Install Debian, pack it as the base of the stand-ins for images, and add the engine."""
    mirror = _mirror()
    subprocess.run(
        ["debootstrap", "--variant=minbase", "--include=ca-certificates", RELEASE, str(root), mirror],
        check=True,
        stdout=(folder / "debootstrap.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    _copy_network_settings(root)
    (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")  # starts no service while it is installed
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    # As small as Debian's own base images: no documentation and no translations, now and in what is installed later.
    excluded = "".join(f"path-exclude=/usr/share/{name}/*\n" for name in _NOT_NEEDED)
    (root / "etc/dpkg/dpkg.cfg.d/small").write_text(excluded)
    for name in _NOT_NEEDED:
        shutil.rmtree(root / "usr/share" / name, ignore_errors=True)
    shutil.rmtree(root / "var/lib/apt/lists")
    chroot = ["chroot", str(root)]
    subprocess.run([*chroot, "apt-get", "clean"], check=True)
    subprocess.run(["tar", "--directory", str(root), "--create", "--file", str(folder / "debian.tar"), "."], check=True)
    with (folder / "apt.log").open("w") as log:
        for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
            subprocess.run(
                [*chroot, "apt-get", "--quiet", *arguments],
                check=True,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            )


def _copy_network_settings(root: Path) -> None:
    """Copy how this machine reaches packages: name servers, certificates, and the settings of apt and pip."""
    certificates = "etc/ssl/certs/ca-certificates.crt"
    wanted = ["etc/resolv.conf", "etc/pip.conf", certificates]
    wanted += [
        str(path)[1:] for word in ("proxy", "artifact") for path in Path("/etc/apt/apt.conf.d").glob(f"*{word}*")
    ]
    for name in wanted:
        if (Path("/") / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path("/") / name, root / name)


@contextlib.contextmanager
def _way_out(name: str, init: str, gateway: str) -> Iterator[None]:
    """Connect the network namespace of a process with the network of this machine."""
    rules = [
        ("nat", "POSTROUTING", "--source", f"{gateway}/30", "--jump", "MASQUERADE"),
        ("filter", "FORWARD", "--in-interface", name, "--jump", "ACCEPT"),
        ("filter", "FORWARD", "--out-interface", name, "--jump", "ACCEPT"),
    ]
    forwarding = _FORWARDING.read_text()
    with contextlib.ExitStack() as stack:
        stack.callback(_FORWARDING.write_text, forwarding)
        _FORWARDING.write_text("1")
        for table, chain, *rule in rules:
            subprocess.run(["iptables", "--table", table, "--insert", chain, *rule], check=True)
            stack.callback(subprocess.run, ["iptables", "--table", table, "--delete", chain, *rule], check=False)
        subprocess.run(
            ["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", init], check=True
        )  # the kernel removes both ends with the namespace
        subprocess.run(["ip", "addr", "add", f"{gateway}/30", "dev", name], check=True)
        subprocess.run(["ip", "link", "set", name, "up", "mtu", _mtu()], check=True)
        yield


def _stop(engine: "subprocess.Popen[bytes]", init: str) -> None:
    subprocess.run(["kill", "-TERM", init], check=False)
    with contextlib.suppress(subprocess.TimeoutExpired):
        engine.wait(_STOP_S)


def _remove_cgroups(name: str) -> None:
    for top in [*_CGROUPS.glob(name), *_CGROUPS.glob(f"*/{name}")]:
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


def _wait_for(probe: Callable[[], Result], what: str) -> Result:
    """Return the first result of ``probe`` that is true."""
    deadline = time.monotonic() + _START_S
    while not (result := probe()):
        if time.monotonic() > deadline:
            message = f"waited {_START_S} s for {what}"
            raise TimeoutError(message)
        time.sleep(0.1)
    return result


def _output(*command: str) -> str:
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


def _mirror() -> str:
    """Return the address of the Debian mirror that apt uses on this machine."""
    lines = _output(
        *(
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI)",
            "Created-By: Packages",
            "Origin: Debian",
            "Label: Debian",
        )
    )
    return lines.splitlines()[0].rstrip("/") if lines else ""


def _mtu() -> str:
    """Return the largest packet of the interface that leads out of this machine."""
    words = _output("ip", "-o", "route", "get", "192.0.2.1").split()
    interface = words[words.index("dev") + 1] if "dev" in words else "lo"
    return Path(f"/sys/class/net/{interface}/mtu").read_text().strip() if interface != "lo" else "1400"
