"""A process that may not read a file which a setting names says which file, which user, and what to do."""

import asyncio
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import TIMEOUT_S

# Root may read everything, thanks to two capabilities. If the tests run as root, their processes have neither of them,
# and the files belong to another user.
IS_ROOT = os.geteuid() == 0
WITHOUT_CAPABILITIES = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if IS_ROOT else []
OWNER = 10001 if IS_ROOT else os.geteuid()
ELSEWHERE = "redis://127.0.0.1:1"  # no process asks it: the faults are found before
AGENT = "async def agent(run):\n    return 'hi'\n"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder. Its files get their usual modes again, so that pytest can remove them."""
    yield tmp_path
    for path, folders, _ in os.walk(tmp_path):
        for name in folders:
            (Path(path) / name).chmod(0o700)


def forbid(path: Path) -> None:
    """Let only another user read a file or folder, or nobody if the tests run as an ordinary user."""
    if IS_ROOT:
        os.chown(path, OWNER, OWNER)
    path.chmod((0o700 if path.is_dir() else 0o600) if IS_ROOT else 0)


async def failed_start(folder: Path, **settings: str) -> str:
    """Start a worker in a folder. Check that it exits with 2; return what it writes."""
    process = await asyncio.create_subprocess_exec(
        *WITHOUT_CAPABILITIES,
        sys.executable,
        "-P",
        "-m",
        "agentstream",
        "worker",
        cwd=folder,
        env={"PATH": os.environ["PATH"], "REDIS_URL": ELSEWHERE, "PYTHONDONTWRITEBYTECODE": "1"} | settings,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    assert process.returncode == 2, output.decode()
    return output.decode()


def assert_explained(output: str, path: Path) -> None:
    """Check that one line names the file, the user and the remedy."""
    (line,) = output.splitlines()
    assert f"runs as user {os.geteuid()} and may not read {path}, " in line
    assert re.search(rf"of user {OWNER} with mode \d+: run chmod -R a\+rX on it \(in a container: .*\)", line)


@pytest.mark.parametrize("refused", ["", "agents", "agents/one.py", "agents/__init__.py", "agents/inner", "flat.py"])
async def test_an_agent_that_may_not_be_read_is_explained(folder: Path, refused: str) -> None:
    """If a module, its package or the working directory may not be read, the worker names it and its user."""
    for name in ("flat.py", "agents/__init__.py", "agents/one.py", "agents/inner/__init__.py", "agents/inner/two.py"):
        path = folder / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(AGENT if "__init__" not in name else "")
        path.chmod(0o644)
    module = {"flat.py": "flat", "agents/inner": "agents.inner.two"}.get(refused, "agents.one")
    forbid(folder / "app" / refused)
    output = await failed_start(folder / "app", AGENTSTREAM_AGENT=f"{module}:agent")
    assert_explained(output, folder / "app" / refused)
    assert f"agent '{module}:agent'" in output


@pytest.mark.parametrize("setting", ["AGENTSTREAM_TOOLS", "AGENTSTREAM_ENGINE", "AGENTSTREAM_AGENTS"])
async def test_every_setting_that_names_a_module_is_explained(folder: Path, setting: str) -> None:
    """Tools, engines and the agents of models are explained like the one agent."""
    (folder / "mine.py").write_text(AGENT)
    forbid(folder / "mine.py")
    spec = "m=mine:agent" if setting == "AGENTSTREAM_AGENTS" else "mine:agent"
    assert_explained(await failed_start(folder, **{setting: spec}), folder / "mine.py")


async def test_a_module_that_is_not_there_is_explained(folder: Path) -> None:
    """If there is no such module, the worker names the folder and its modules, or says that it has none."""
    output = await failed_start(folder, AGENTSTREAM_AGENT="mine:agent")
    assert f"(searched {folder} first); {folder} has no Python file: " in output
    (folder / "other.py").write_text(AGENT)
    (folder / "pack").mkdir()
    (folder / "pack/inner.py").write_text(AGENT)
    output = await failed_start(folder, AGENTSTREAM_AGENT="mine:agent")
    assert f"; the modules in {folder} are other, pack\n" in output
    output = await failed_start(folder, AGENTSTREAM_AGENT="pack.mine:agent")
    assert f"; the modules in {folder / 'pack'} are inner\n" in output


@pytest.mark.parametrize("refused", ["mcp.json", ""])
async def test_a_file_of_mcp_servers_that_may_not_be_read_is_explained(folder: Path, refused: str) -> None:
    """If the file of MCP servers or its folder may not be read, the worker names it and its user."""
    path = folder / "secrets/mcp.json"
    path.parent.mkdir()
    path.write_text('{"mcpServers": {}}')
    forbid(path.parent / refused)
    output = await failed_start(folder, AGENTSTREAM_MCP_SERVERS=str(path))
    assert_explained(output, path.parent / refused)


async def test_a_file_that_docker_made_a_folder_is_explained(folder: Path) -> None:
    """If the file of MCP servers is a folder, as Docker makes one, or is not there, the error says so."""
    (folder / "mcp.json").mkdir()
    output = await failed_start(folder, AGENTSTREAM_MCP_SERVERS=str(folder / "mcp.json"))
    assert f"{folder / 'mcp.json'} is a folder; Docker creates one if the file" in output
    output = await failed_start(folder, AGENTSTREAM_MCP_SERVERS="none.json")
    assert f"No such file or directory: {folder / 'none.json'}" in output


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_ca_path"])
async def test_a_file_of_the_redis_url_that_may_not_be_read_is_explained(folder: Path, option: str) -> None:
    """If a certificate, key or folder for the TLS connection to Redis may not be read, the worker names the option."""
    path = folder / option
    path.mkdir() if option == "ssl_ca_path" else path.write_text("")
    forbid(path)
    output = await failed_start(folder, REDIS_URL=f"rediss://127.0.0.1:1?{option}={path}")
    assert_explained(output, path)
    assert f" {option}: " in output


async def test_certificates_of_the_environment_are_explained(folder: Path) -> None:
    """If the file of SSL_CERT_FILE cannot be read, the worker names the variable and its user, not the proxies."""
    settings = {"OPENAI_BASE_URL": "https://127.0.0.1:1/v1", "SSL_CERT_FILE": str(folder / "none.pem")}
    output = await failed_start(folder, **settings)
    assert "SSL_CERT_FILE" in output
    assert f"user {os.geteuid()} may read" in output
    assert "PROXY" not in output
