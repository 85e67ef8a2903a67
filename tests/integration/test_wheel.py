"""The wheel of the client in an environment of its own, without extras, as a user has it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from zipfile import ZipFile

import pytest

from gridveil.operator import Operator, ReleasedTotal
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.totals.serve import TotalsProcess
from tests.support.totals import publish, refused, released
from tests.support.totals_clients import opened, window

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
UV = ROOT / ".venv-tools" / "bin" / "uv"
MOST_PACKAGES = 25
"""What `pip install gridveil` may bring, all told."""


def run(*words: str | Path, cwd: Path = ROOT) -> str:
    unwanted = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"}
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment | {"UV_LINK_MODE": "hardlink", "UV_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Installed:
    """An environment that has the client's wheel and what it requires, at the locked versions."""

    wheel: Path
    python: Path

    @property
    def command(self) -> Path:
        return self.python.with_name("gridveil")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    run(UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT / "client")
    (wheel,) = folder.glob("gridveil-*.whl")
    locked, python = folder / "requirements.txt", folder / "venv" / "bin" / "python"
    exporting = ("export", "--quiet", "--locked", "--no-dev", "--no-emit-workspace")
    run(UV, *exporting, "--package", "gridveil", "--output-file", locked)
    run(UV, "venv", "--quiet", folder / "venv")
    installing = ("pip", "install", "--quiet", "--python", python)
    run(UV, *installing, "--require-hashes", "--requirement", locked)
    run(UV, *installing, "--no-deps", wheel)
    return Installed(wheel, python)


@pytest.fixture
def city(paths: CityPaths, serve: Callable[[], TotalsProcess]) -> CityPaths:
    """One whose totals service has a total and a window without one."""
    publish(paths, released(opened(paths, 0)), refused(window(1)))
    serve()
    return paths


def samples() -> list[str]:
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    return re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_its_description_shows_the_sample_that_is_run(installed: Installed) -> None:
    archive = ZipFile(installed.wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
    description = archive.read(name).decode("utf-8").partition("\n\n")[2]
    assert description.startswith("# gridveil\n")
    assert samples()[0] in description


def expected(city: CityPaths) -> int:
    with Operator.open(city.profile("operator")) as operator:
        outcome = next(operator.list())
    assert isinstance(outcome, ReleasedTotal)
    return outcome.sum("import_wh")


def test_the_wheel_holds_the_package_and_says_that_it_is_typed(installed: Installed) -> None:
    names = ZipFile(installed.wheel).namelist()
    assert "gridveil/py.typed" in names
    assert "gridveil/tables/rows.py" in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"gridveil"}


def test_an_installation_without_extras_is_small(installed: Installed) -> None:
    listed = run(UV, "pip", "list", "--format", "freeze", "--python", installed.python)
    packages = {line.partition("==")[0].lower() for line in listed.splitlines()}
    assert "gridveil" in packages
    assert not packages & {"apsw", "numpy", "tenseal", "pyarrow", "pandas", "polars", "zstandard"}
    assert len(packages) <= MOST_PACKAGES, sorted(packages)


def test_the_samples_of_the_documents_run_in_it(installed: Installed, city: CityPaths) -> None:
    blocking, asynchronous = samples()
    sums = expected(city)
    folder = city.folder.parent
    listed = run(installed.python, "-c", blocking, cwd=folder)
    assert listed == f"{window(0)} {sums} 1.0\n{window(1)} REFUSED\n"
    assert run(installed.python, "-c", asynchronous, cwd=folder) == f"{window(0)} {sums}\n"


def test_the_command_reads_and_exports_totals_in_it(
    installed: Installed, city: CityPaths, tmp_path: Path
) -> None:
    profile = ("--profile", city.profile("operator"))
    assert f"{expected(city):,} Wh" in run(installed.command, "totals", "list", *profile)
    output = tmp_path / "totals.csv"
    run(installed.command, "totals", "export", "--output", output, *profile)
    assert len(output.read_text("utf-8").splitlines()) == 3
    assert "gridveil 0.1.0" in run(installed.command, "version")


def test_what_needs_an_extra_says_so_in_it(installed: Installed, city: CityPaths) -> None:
    told = subprocess.run(
        [
            *(installed.command, "totals", "export", "--format", "parquet", "--output", "x"),
            *("--profile", city.profile("operator")),
        ],
        cwd=city.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 2
    assert told.stderr.endswith("install it with: pip install 'gridveil[tables]'\n")
    assert not (city.folder / "x").exists()


USER = """
    from collections.abc import Iterator

    import gridveil
    from gridveil import AsyncOperator, MeterKeys, Operator, Reason, ReleasedTotal, SystemClock
    from gridveil.tables import Layout, Row, Status, csv_lines, rows, survey


    def sums(profile: str) -> Iterator[int]:
        with Operator.open(profile) as operator:
            for outcome in operator.list():
                reveal_type(outcome)
                if isinstance(outcome, ReleasedTotal):
                    yield outcome.sum("import_wh")


    def lines(profile: str) -> list[str]:
        with Operator.open(profile) as operator:
            layout, outcomes = survey(operator.list(), gridveil.time_zone("Europe/Zurich"))
            return list(csv_lines(rows(outcomes, layout), layout))


    async def coverage(profile: str) -> float | None:
        async with AsyncOperator.open(profile) as operator:
            outcome = await operator.get(1_767_225_600)
        return outcome.coverage if isinstance(outcome, ReleasedTotal) else None


    def record(keys: MeterKeys) -> None:
        clock = SystemClock()
        with gridveil.Meter.open("p.toml", keys=keys, outbox="outbox.db", clock=clock) as meter:
            meter.record(900, import_wh=1)
            reveal_type(meter.flush()[0].state)


    def is_refused(error: gridveil.GridveilError) -> bool:
        return error.reason is Reason.REFUSED


    empty: Layout = Layout()
    row: Row = Row(900, Status.NOT_SETTLED)
"""

WRONG = """
    from gridveil import Operator, Profile

    operator = Operator.open(1)
    profile: int = Profile.load
    operator.nothing()
"""


def type_check(installed: Installed, folder: Path, program: str) -> tuple[int, str]:
    (folder / "program.py").write_text(dedent(program))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--cache-dir", folder / "cache"),
            *("--python-executable", installed.python, "--config-file", os.devnull),
            "program.py",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_users_program_is_type_checked_against_it(installed: Installed, tmp_path: Path) -> None:
    code, told = type_check(installed, tmp_path, USER)
    assert code == 0, told
    revealed = re.findall(r'Revealed type is "(.*?)"', told)
    assert [re.sub(r"[\w.]+\.", "", found) for found in revealed] == [
        "ReleasedTotal | NotReleased",
        "State",
    ]


def test_a_users_mistakes_are_found(installed: Installed, tmp_path: Path) -> None:
    code, told = type_check(installed, tmp_path, WRONG)
    assert code == 1
    assert re.findall(r"\[([\w-]+)\]$", told, re.MULTILINE) == [
        "arg-type",
        "assignment",
        "attr-defined",
    ]


def test_the_documents_samples_are_type_checked_too(installed: Installed, tmp_path: Path) -> None:
    for sample in samples():
        code, told = type_check(installed, tmp_path, sample)
        assert code == 0, told
