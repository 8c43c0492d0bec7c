"""The guides: their links, blocks, tables and paths. The tests in tests/guides/ run what the long guides show."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from agentstream.config import Settings, env_name
from tests import test_imports
from tests.bench import figures
from tests.documents import (
    FREE_PORT,
    RUN_BY_READERS,
    START_S,
    Document,
    as_run_here,
    broken_links,
    interrupt,
    output,
    shell,
)
from tests.processes import ROOT

FOLDER = ROOT / "deploy/guides"
GUIDES = [Document(path.relative_to(ROOT).as_posix()) for path in sorted(FOLDER.glob("*.md"))]
EXAMPLES = Document("deploy/examples/README.md")
CONFIGURATION = Document("deploy/guides/configuration.md")
CONTRIBUTING = Document("deploy/guides/contributing.md")

# Files with tests that run marked blocks.
TESTS = [Path(__file__), *sorted((ROOT / "tests/guides").glob("test_*.py"))]

# How the first line of each block that no test runs begins, and the reason.
NOT_RUN = {
    "docker compose up --build --scale frontend=3 --scale worker=4": "needs Docker; tests/compose runs it",
    "docker save agentstream | ssh HOST docker load": "needs two machines with Docker",
    "deploy/rolling-update.sh": "needs Docker; tests/compose/updates.py runs it",
    "docker tag agentstream:previous agentstream": "needs Docker; tests/compose/updates.py runs it",
    "docker compose --profile observability up": "needs Docker",
    "docker compose up --build": "needs Docker; tests/compose/brokers.py runs it with both profiles",
    "BROKER_URL=redis+cluster://cluster-1,cluster-2,cluster-3": "needs Docker; tests/compose/brokers.py runs the same",
    "docker compose exec sentinel-1 redis-cli": "needs Docker; tests/compose/brokers.py asks the same",
    "docker compose exec cluster-1 redis-cli": "needs Docker; tests/compose/brokers.py asks the same",
    "kubectl apply --filename deploy/kubernetes": "needs a Kubernetes cluster",
    "kubectl apply --filename deploy/kubernetes/worker.yaml": "needs a Kubernetes cluster",
    "systemctl enable --now agentstream-frontend@8001 agentstream-frontend@8002": "needs systemd; the units are run",
    "systemctl restart agentstream-worker@9464": "needs systemd; the units are run",
    "python3 -m venv /opt/agentstream": "writes to /opt; tests/test_readme.py runs the same installation elsewhere",
    "pip install 'agentstream[otel]'": "needs the network, and a backend for traces",
}


# Links and blocks


@pytest.mark.parametrize("path", [*(guide.path for guide in GUIDES), EXAMPLES.path, "deploy/PROTOCOL.md"])
def test_links_lead_somewhere(path: str) -> None:
    """Each relative link of a guide is a file of this repository, and its fragment a heading there."""
    assert broken_links(Document(path)) == []


@pytest.mark.parametrize("link", ["nothing.md", "agents.md#no-such-heading", "#no-such-heading"])
def test_broken_links_are_found(link: str) -> None:
    """A link to a file or a heading that does not exist is found."""
    guide = Document("deploy/guides/README.md")
    guide.text += f"\n[there]({link})\n"
    assert broken_links(guide) == [link]


def test_figures_agree_with_the_table_of_the_benchmark() -> None:
    """Each figure that a guide repeats from the benchmark's table follows from the table, and has its sentence."""
    values = figures.measured(figures.PERFORMANCE.read_text())
    texts = [guide.read_text() for guide in figures.GUIDES]
    assert [figures.agree(text, values) for text in texts] == texts
    assert [sentence for sentence in figures.SENTENCES if not re.search(sentence, "".join(texts))] == []


def test_every_guide_is_listed() -> None:
    """The list of guides links to every guide and every generated page."""
    listed = {path for path, _ in Document("deploy/guides/README.md").links()}
    pages = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.md")}
    assert pages - {"README.md"} <= listed


@pytest.mark.parametrize("guide", [*GUIDES, EXAMPLES], ids=lambda guide: Path(guide.path).stem)
def test_every_block_that_readers_run_is_run(guide: Document) -> None:
    """Every command and program of a guide has a mark that a test names, or a reason why no test runs it."""
    sources = [path.read_text(encoding="utf-8") for path in TESTS]
    source = "\n".join(source for source in sources if f'Document("{guide.path}")' in source)
    for block in guide.all_blocks:
        if block.mark:
            assert f'"{block.mark}"' in source, f"no test runs the blocks marked {block.mark}"
        elif block.language in RUN_BY_READERS:
            assert block.first_line.startswith(tuple(NOT_RUN)), f"no mark and no reason: {block.first_line}"


def test_every_exception_is_a_block() -> None:
    """The list of blocks that no test runs names only blocks that exist."""
    first_lines = {block.first_line for guide in [*GUIDES, EXAMPLES] for block in guide.all_blocks if not block.mark}
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in first_lines)] == []


# Configuration


async def test_a_flag_and_a_variable_are_used(tmp_path: Path) -> None:
    """The first command starts four workers; its port is replaced by a free one."""
    (command,) = CONFIGURATION.blocks("start")
    command = re.sub(r"AGENTSTREAM_PORT=\d+", f"AGENTSTREAM_PORT={FREE_PORT['AGENTSTREAM_PORT']}", command)
    process = await shell(as_run_here(command), tmp_path)
    try:
        await process.until(r"(?m)^worker 4 +pid", START_S)
    finally:
        await interrupt(process)


async def test_config_shows_the_sources(tmp_path: Path) -> None:
    """The command prints the three lines of the guide, and with --json the same values."""
    (command,) = CONFIGURATION.blocks("config")
    shown = (await output(as_run_here(command), tmp_path)).splitlines()
    (sample,) = [block.text for block in CONFIGURATION.all_blocks if not block.language]
    assert len(sample.splitlines()) == 3
    for line in sample.splitlines():
        assert line.split() in [words.split() for words in shown]
    settings = json.loads(await output(f"{as_run_here(command)} --json", tmp_path))["settings"]
    assert settings["port"].items() >= {"value": 8080, "from": "AGENTSTREAM_PORT"}.items()


async def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    """The command ends with 2 and names both settings with their values."""
    (command,) = CONFIGURATION.blocks("refused")
    process = await shell(as_run_here(command), tmp_path)
    assert await process.ended(START_S) == 2
    assert "AGENTSTREAM_PORT='http'" in process.output
    assert "AGENTSTREAM_WORKERS='0'" in process.output


REFUSED = {
    "AGENTSTREAM_HOST": "--host 0.0.0.0",
    "AGENTSTREAM_AGENTS": "--agents m=a:b --agent a:b",
    "the same model": "--agents m=a:b,m=a:c",
    "a queue in": "--agents m=a:b@x --queues y",
    "`frontend`": "",
}


@pytest.mark.parametrize("row", re.findall(r"(?m)^\| (.*?) \|", CONFIGURATION.section("What is refused"))[2:])
async def test_combinations_are_refused(row: str, tmp_path: Path) -> None:
    """Each combination of the table ends with 2."""
    (flags,) = [flags for start, flags in REFUSED.items() if row.strip("`").startswith(start.strip("`"))]
    command = f"agentstream config {flags}" if flags else "agentstream worker"
    process = await shell(as_run_here(command), tmp_path)
    assert await process.ended(START_S) == 2


@pytest.mark.parametrize("row", re.findall(r"(?m)^\| `(\w+=.*?)` \|", CONFIGURATION.section("Common mistakes")))
async def test_common_mistakes_are_refused(row: str, tmp_path: Path) -> None:
    """Each value of the table ends with 2 and the name of its variable."""
    name, _, value = row.partition("=")
    others = {"REDIS_URL": "redis://127.0.0.1:1", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}
    variables = " ".join(f"{each}={shlex.quote(text)}" for each, text in {**others, name: value}.items())
    process = await shell(as_run_here(f"{variables} agentstream worker"), tmp_path)
    assert await process.ended(START_S) == 2
    assert name in process.output


async def test_an_unknown_variable_is_named(tmp_path: Path) -> None:
    """A variable that is no setting gives a warning with the likely name, and nothing is refused."""
    shown = await output(as_run_here("AGENTSTREAM_PROT=1 agentstream config"), tmp_path)
    assert "warning: AGENTSTREAM_PROT is not a setting; did you mean AGENTSTREAM_PORT?" in shown


def first_settings() -> list[tuple[str, str | None]]:
    """Return (variable, default as printed, None if it is said in words) of each variable in the table."""
    section = CONFIGURATION.section("The settings that people change first")
    rows = []
    for line in section.splitlines():
        if line.startswith("| `"):
            names, printed = (cell.strip().split(", ") for cell in line.split("|")[1:3])
            literal = all(re.fullmatch(r"`[^`]*`", default) for default in printed)
            defaults = [default.strip("`") for default in printed] if literal else [None] * len(names)
            rows += list(zip([name.strip("`") for name in names], defaults, strict=True))
    return rows


@pytest.mark.parametrize(("variable", "default"), first_settings())
def test_a_setting_of_the_table_is_one(variable: str, default: str | None) -> None:
    """Each variable of the table is a setting, with the default that the table gives."""
    field = {env_name(field): field for field in Settings.model_fields}[variable]
    actual = Settings.model_fields[field].default
    if default is None:  # in words: what happens without the setting
        assert actual in {None, ()}
    else:
        assert default == (",".join(actual) if isinstance(actual, tuple) else str(actual).lower())


def test_the_table_is_found() -> None:
    """The settings above were read from the table."""
    assert len(first_settings()) > 12


# Contributing


def contributing_paths() -> list[str]:
    """Return every path in the guide; placeholders such as ``<name>`` are none."""
    quoted = re.findall(r"`([^`\n]+)`", CONTRIBUTING.text)
    paths = [text for text in quoted if re.fullmatch(r"[\w.-]+(/[\w.-]+)*(/|\.\w+)", text) and "=" not in text]
    return sorted({path for path in paths if "/" in path or path.endswith((".py", ".toml", ".md"))})


@pytest.mark.parametrize("path", contributing_paths())
def test_a_path_of_the_guide_exists(path: str) -> None:
    """Each path of the guide is in the package or in the repository."""
    assert any((base / path).exists() for base in (ROOT / "service/agentstream", ROOT, ROOT / "tests/clients"))


def test_the_paths_are_found() -> None:
    """The paths above were read from the guide."""
    assert len(contributing_paths()) > 80
    assert {"store/lua/admit.lua", "tests/test_imports.py", "deploy/PROTOCOL.md"} <= set(contributing_paths())


def test_the_house_is_that_of_the_layer_test() -> None:
    """The table of rooms has every room of the layer test, in its layer."""
    rows = re.findall(r"(?m)^\| (\d) \| `(\w+)` \|", CONTRIBUTING.section("The house"))
    assert {room: int(layer) for layer, room in rows} == test_imports.LAYER
    assert f"{len(rows)} rooms" in CONTRIBUTING.section("The house")


FILE_TYPES = {"py", "md", "lua", "js", "css", "html", "toml"}


def contributing_names() -> set[str]:
    """Return the names of the guide: constants, snake_case and CamelCase, also those of attributes after a dot."""
    quoted = re.findall(r"`([\w.]+)(?:=|\(\))?`", CONTRIBUTING.text)
    words = {word for text in quoted if Path(text).suffix[1:] not in FILE_TYPES for word in text.split(".")}
    return {word for word in words if re.fullmatch(r"[A-Z][A-Z_]{3,}|_?[a-z]+_\w+|[A-Z]\w*[a-z]\w*", word)}


def test_names_in_the_guide_exist() -> None:
    """Each constant that the guide names is assigned, and each function, class and field is in the code or a test."""
    names = contributing_names()
    assert {"REJECTIONS", "_build_engine", "RequestError", "since_last_answer"} <= names
    files = [*(ROOT / "service").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), ROOT / "Makefile"]
    source = "\n".join(path.read_text(encoding="utf-8") for path in files if path != Path(__file__))
    source += "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "service").rglob("*.js"))
    words = set(re.findall(r"\w+", source))
    assert names - words == set()
    constants = [name for name in names if name.isupper() and not name.startswith("AGENTSTREAM_")]
    assert [name for name in constants if not re.search(rf"(?m)^(?:const)? *{name}\b.*=", source)] == []


@pytest.mark.parametrize(
    "guide", [*GUIDES, Document("README.md"), Document("deploy/PROTOCOL.md")], ids=lambda guide: guide.path
)
def test_lines_are_short(guide: Document) -> None:
    """A line of prose has at most 120 characters, so that a change shows few lines; tables and code may be wider."""
    prose = re.sub(r"(?ms)^```.*?^```$", "", guide.text)
    lines = [line for line in prose.splitlines() if not line.startswith(("|", "<img", "    "))]
    assert [line for line in lines if len(line) > 120] == []


def make_commands() -> list[str]:
    """Return every `make` command of the guides and the README, without comments."""
    texts = [guide.text for guide in [*GUIDES, Document("README.md")]]
    found = {match for text in texts for match in re.findall(r"(?m)(?:^|`)(make [a-z]+)(?=[`\s])", text)}
    return sorted(found)


def test_the_blocks_of_make_are_found() -> None:
    """The commands of the block in the guide are among those below."""
    (block,) = CONTRIBUTING.blocks("make")
    commands = [" ".join(shlex.split(line, comments=True)) for line in block.splitlines()]
    assert commands
    assert set(commands) <= set(make_commands())


@pytest.mark.parametrize("command", make_commands())
def test_a_make_command_has_a_recipe(command: str) -> None:
    """Each `make` command of the documents has a target; it is not run, because most take minutes."""
    make = shutil.which("make")
    assert make is not None
    arguments = [*shlex.split(command)[1:], "--dry-run", "--no-print-directory"]
    shown = subprocess.run([make, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    assert shown.returncode == 0, shown.stderr
