"""The images of deploy/Dockerfile, by its very steps, without a container engine.

The steps are run on this machine, with the paths of a container below a temporary folder. The
bytecode is not compiled, and the cache of uv is used, to be quick.
"""

from __future__ import annotations

import ast
import csv
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from configparser import ConfigParser
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

import pytest

from deploy.role_wheel import PACKAGE, ROLES
from gridveil.cli.extensions import extensions
from gridveil_services.bootstrap.city import CityOptions, create_city
from gridveil_services.demo.processes import free_addresses
from tests.support.dockerfiles import ROOT, stages

STAGES = stages()
TARGETS = ("keyholder", "aggregator", "totals", "witness", "tools")
SERVICES = TARGETS[:-1]
ALL = os.environ.get("GRIDVEIL_IMAGES") == "all"
"""Whether every target is installed and not only the aggregator: `make images`."""


class Machine:
    """A folder that stands for the root of a container in which the stages are built."""

    def __init__(self, root: Path) -> None:
        self.root = root
        programs = root / "programs"
        programs.mkdir()
        (programs / "python").symlink_to(sys.executable)
        self._path = f"{programs}:{ROOT / '.venv-tools' / 'bin'}:/usr/bin:/bin"

    def build(self, *names: str) -> None:
        """Run what the stages say."""
        for name in names:
            for word, arguments in STAGES[name].instructions:
                if word == "COPY":
                    self._copy(*arguments.split())
                elif word == "RUN" and "-m pip install" not in arguments:
                    self.run(arguments)

    def run(self, line: str) -> str:
        """A line of shell, where paths of the container are below the root."""
        environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        environment |= {"PATH": self._path, "UV_PYTHON": sys.executable, "UV_LINK_MODE": "hardlink"}
        done = subprocess.run(
            ["/bin/sh", "-ec", re.sub(r"(?<= )/(?=opt|wheels|roles|requirements)", self._at, line)],
            cwd=self.root / "src",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _at(self, _match: re.Match[str]) -> str:
        return f"{self.root}/"

    def _copy(self, *names: str) -> None:
        *sources, target = names
        folder = self.root / "src" / target
        for source in sources:
            path = ROOT / source
            if path.is_dir():
                unwanted = shutil.ignore_patterns("__pycache__", "dist")
                shutil.copytree(path, folder, ignore=unwanted)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Where the wheels are built, once."""
    made = Machine(tmp_path_factory.mktemp("image"))
    (made.root / "src").mkdir()
    made.build("wheels")
    return made


@pytest.fixture(scope="module")
def wheels(machine: Machine) -> dict[str, Path]:
    """The wheel of each role, by the command that the Dockerfile has for it."""
    found = {}
    for role in SERVICES:
        (line,) = [run for run in STAGES[f"{role}-environment"].all("RUN") if "role_wheel" in run]
        match = re.search(r"\$\((python deploy/role_wheel\.py \S+ (\S+) /roles)\)", line)
        assert match is not None
        assert match[2] == role
        path = Path(machine.run(match[1]).strip())
        found[role] = path.rename(path.with_name(f"{role}.zip"))
    return found


def test_there_is_one_target_a_role_and_one_for_tools() -> None:
    built_upon = {stage.base for stage in STAGES.values()}
    final = {name for name in STAGES if not name.endswith("-environment")} - built_upon
    assert final == set(TARGETS)
    assert {name for name in STAGES if name.endswith("-environment")} == {
        f"{target}-environment" for target in TARGETS
    }


@pytest.mark.parametrize("target", TARGETS)
def test_every_image_runs_as_a_numeric_user_without_a_shell(target: str) -> None:
    stage = STAGES[target]
    assert stage.base == "runtime"
    assert re.fullmatch(r"[1-9]\d{4}:[1-9]\d{4}", stage.only("USER"))
    assert stage.whole_command[0] == "/opt/gridveil/bin/gridveil"
    assert stage.instructions[-1][0] == "HEALTHCHECK"
    if target == "tools":
        assert stage.only("HEALTHCHECK") == "NONE"
    else:
        assert stage.health_command[0].startswith("/opt/gridveil/bin/")
        user = stage.only("USER").split(":")
        assert f"-o {user[0]} -g {user[1]} " in stage.only("RUN")


def test_no_two_services_run_as_the_same_user() -> None:
    users = {STAGES[target].only("USER").split(":")[0] for target in TARGETS}
    assert len(users) == len(TARGETS)


def test_images_are_built_with_the_uv_that_wrote_the_lock() -> None:
    (makefile,) = re.findall(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.M)
    (image,) = re.findall(r"uv==(\S+)", STAGES["wheels"].all("RUN")[0])
    assert image == makefile


def test_the_build_context_is_what_the_stages_copy() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    wanted = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        source.rstrip("/")
        for arguments in STAGES["wheels"].all("COPY")
        for source in arguments.split()[:-1]
    }
    assert "*" in lines
    assert wanted == copied
    assert all((ROOT / source).exists() for source in copied)
    others = [c for s in STAGES.values() if s.name != "wheels" for c in s.all("COPY")]
    assert len(others) == len(TARGETS)
    assert all(re.fullmatch(r"--from=\S+-environment (/opt/gridveil) \1", c) for c in others)


@pytest.mark.parametrize("role", SERVICES)
def test_a_roles_wheel_has_its_own_code_and_no_siblings(role: str, wheels: dict[str, Path]) -> None:
    siblings = {path.name for path in (ROOT / "services" / PACKAGE).iterdir() if path.is_dir()}
    siblings -= {*ROLES[role], "__pycache__"}
    with ZipFile(wheels[role]) as wheel:
        names = wheel.namelist()
        record = next(name for name in names if name.endswith(".dist-info/RECORD"))
        commands = next(name for name in names if name.endswith("/entry_points.txt"))
        rows = {row[0]: row for row in csv.reader(io.StringIO(wheel.read(record).decode()))}
        sizes = {name: str(len(wheel.read(name))) for name in names}
        offered = ConfigParser()
        offered.read_string(wheel.read(commands).decode())
    assert len(siblings) >= 4
    assert f"{PACKAGE}/{role}/cli.py" in names
    assert not [name for name in names if set(name.split("/")[1:2]) & siblings]
    assert list(offered["gridveil.commands"]) == [role]
    named = {text.partition(":")[0] for group in offered.values() for text in group.values()}
    assert {f"{module.replace('.', '/')}.py" for module in named} <= set(names)
    assert set(rows) == set(names)
    assert all(rows[name][2] == sizes[name] for name in names if name != record)


@pytest.mark.parametrize("role", SERVICES)
def test_a_role_imports_nothing_that_its_wheel_lacks(role: str, wheels: dict[str, Path]) -> None:
    with ZipFile(wheels[role]) as wheel:
        sources = [wheel.read(name) for name in wheel.namelist() if name.endswith(".py")]
    wanted = {name for source in sources for name in imported(source)}
    assert wanted
    assert wanted <= {PACKAGE, *(f"{PACKAGE}.{part}" for part in ROLES[role])}


def imported(source: bytes) -> Iterable[str]:
    """The packages of the services that a module imports, two levels deep."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        yield from (".".join(n.split(".")[:2]) for n in names if n.split(".")[0] == PACKAGE)


@pytest.fixture(scope="module", params=TARGETS if ALL else ["aggregator"])
def installed(request: pytest.FixtureRequest, machine: Machine) -> tuple[str, Path]:
    """A target, and its environment: installed by the steps of the Dockerfile."""
    target = str(request.param)
    environment = machine.root / "opt" / "gridveil"
    shutil.rmtree(environment)
    shutil.rmtree(machine.root / "roles", ignore_errors=True)
    machine.run(STAGES["wheels"].all("RUN")[-1])
    machine.build(f"{target}-environment")
    return target, environment


def run(environment: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [environment / "bin" / "python", *words],
        capture_output=True,
        text=True,
        check=False,
        env={"COLUMNS": "200"},
    )


def test_an_image_has_its_own_command_and_cannot_import_a_sibling(
    installed: tuple[str, Path],
) -> None:
    target, environment = installed
    own = [*STAGES[target].command("ENTRYPOINT")[1:], "--help"]
    assert run(environment, "-m", "gridveil.cli", *own).returncode == 0
    assert run(environment, "-m", "gridveil.cli", "health", "--help").returncode == 0
    siblings = [name for name in SERVICES if name != target]
    assert len(siblings) >= 3
    for sibling in siblings:
        failed = run(environment, "-c", f"import {PACKAGE}.{sibling}")
        assert "ModuleNotFoundError" in failed.stderr
        unknown = run(environment, "-m", "gridveil.cli", sibling, "serve", "--help")
        assert unknown.returncode != 0


def test_only_images_that_encrypt_or_decrypt_have_the_homomorphic_library(
    installed: tuple[str, Path],
) -> None:
    target, environment = installed
    found = run(environment, "-c", "import tenseal")
    assert (found.returncode == 0) == (target in {"keyholder", "tools"})
    assert run(environment, "-c", "import grpc, numpy, nacl").returncode == 0


def test_an_image_holds_what_the_lock_names(installed: tuple[str, Path]) -> None:
    _, environment = installed
    lock = (ROOT / "uv.lock").read_text()
    locked = set(re.findall(r'^name = "(.+)"\nversion = "(.+)"$', lock, re.M))
    metadata = (environment / "lib").glob("python*/site-packages/*.dist-info/METADATA")
    found = set()
    for path in metadata:
        text = path.read_text("utf-8", errors="replace")
        name = re.search(r"^Name: (.+)$", text, re.M)
        version = re.search(r"^Version: (.+)$", text, re.M)
        assert name is not None
        assert version is not None
        found.add((re.sub(r"[-_.]+", "-", name[1]).lower(), version[1]))
    assert len(found) > 15
    assert found <= locked


def test_the_aggregators_image_serves_with_its_own_command_line(
    installed: tuple[str, Path], tmp_path: Path
) -> None:
    target, environment = installed
    if target != "aggregator":
        return
    paths = create_city(tmp_path / "city", CityOptions(addresses=free_addresses()))
    before = digest(environment)
    command = [word.replace("/city/", f"{paths.folder}/") for word in STAGES[target].whole_command]
    command[0] = str(environment / "bin" / "gridveil")
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd="/",
        env={"PYTHONDONTWRITEBYTECODE": "1"},
    ) as process:
        assert process.stdout is not None
        assert '"event": "serving"' in process.stdout.readline()
        process.terminate()
        assert process.wait(timeout=60) == 0
    assert digest(environment) == before


def digest(folder: Path) -> str:
    """Names and times of all files: what a read-only file system would not let change."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = "\n".join(f"{path} {path.stat().st_mtime_ns}" for path in files)
    return sha256(listed.encode()).hexdigest()


def test_every_images_command_is_one_of_the_command_line() -> None:
    for target in TARGETS:
        words = STAGES[target].command("ENTRYPOINT")[1:]
        assert not words or words[0] in extensions()
