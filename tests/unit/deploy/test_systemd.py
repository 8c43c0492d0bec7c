"""The systemd units in the operations guide start our processes, and agree with the settings."""

import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from agentstream.config import Settings, env_name
from agentstream.processes.runtime import EXIT_WRONG_SETTINGS

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "deploy/guides/operations.md").read_text()
INSTALLED = "/opt/agentstream/bin/agentstream"

each_role = pytest.mark.parametrize("role", ["frontend", "worker"])


def unit(role: str) -> tuple[str, str]:
    """Return (file name, text) of a unit."""
    found = re.search(rf"<!-- test: {role}_unit -->\n```ini\n# /etc/systemd/system/(\S+)\n(.*?)```", GUIDE, re.DOTALL)
    assert found is not None
    return found[1], found[2]


def service(role: str) -> dict[str, str]:
    """Return the section [Service] of a unit."""
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # systemd's names are case-sensitive
    parser.read_string(unit(role)[1])
    return dict(parser["Service"])


def variables(role: str) -> dict[str, str]:
    """Return the environment that a unit sets."""
    return dict(entry.split("=", 1) for entry in service(role)["Environment"].split())


@each_role
def test_a_unit_starts_its_process(role: str) -> None:
    """Each unit starts the process that its name says, with settings that exist and with its port from the name."""
    assert unit(role)[0] == f"agentstream-{role}@.service"
    assert service(role)["ExecStart"] == f"{INSTALLED} {role}"
    assert variables(role).keys() <= {env_name(field) for field in Settings.model_fields}
    port = {"frontend": "AGENTSTREAM_PORT", "worker": "AGENTSTREAM_METRICS_PORT"}[role]
    assert variables(role)[port] == "%i"


def test_clients_do_not_see_the_texts_of_errors() -> None:
    """The workers hide the texts of their agents' errors from clients."""
    assert variables("worker")["AGENTSTREAM_ERROR_DETAILS"] == "hidden"


@each_role
def test_a_stop_leaves_time_to_drain(role: str) -> None:
    """Systemd signals the main process alone, and waits longer than the drain takes."""
    assert service(role)["KillMode"] == "mixed"
    assert float(service(role)["TimeoutStopSec"]) > float(variables(role)["AGENTSTREAM_DRAIN_TIMEOUT_S"]) + 10


@each_role
def test_wrong_settings_are_not_tried_again(role: str) -> None:
    """Systemd restarts a process that failed, but not one that refused its settings."""
    assert service(role)["Restart"] == "on-failure"
    assert service(role)["RestartPreventExitStatus"] == str(EXIT_WRONG_SETTINGS)


@each_role
def test_every_unit_is_confined(role: str) -> None:
    """Each process runs without root, a writable file system, capabilities or new privileges."""
    confined = {"DynamicUser": "yes", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "CapabilityBoundingSet": ""}
    assert confined.items() <= service(role).items()


@each_role
def test_systemd_accepts_the_unit(role: str, tmp_path: Path) -> None:
    """Systemd's own check finds no fault in a unit, apart from the program that is not installed here."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed (Debian: apt-get install systemd)")
    name, text = unit(role)
    file = tmp_path / name.replace("@", "@8001")
    file.write_text(text.replace(INSTALLED, "/bin/true"))
    done = subprocess.run([analyze, "verify", file], capture_output=True, text=True, check=False, timeout=30)
    ours = [line for line in done.stderr.splitlines() if file.name in line]
    assert (done.returncode, ours) == (0, []), done.stderr
