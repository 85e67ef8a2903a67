"""The attacks are real: take one protection out, and the tests that carry them out fail.

Each mutant is a copy of the packages with one small edit; the tests run on it in a process of
their own. As a control such tests pass on a copy that is not edited.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.adversary.mutant import Attacks, Mutant
from tests.adversary.mutants import MUTANTS
from tests.support.redis_servers import NEEDED, PROGRAM

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
PACKAGES = ("client/gridveil", "services/gridveil_services")
INI = "[pytest]\naddopts = --import-mode=importlib -q\n"
TIMEOUT_S = 240
# The other core is another test process's, if there is one.
AT_A_TIME = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2


@dataclass(frozen=True)
class Outcome:
    """How a run of tests ended."""

    counts: dict[str, int]
    """How many ``failed``, ``passed``, or met an ``error`` in a fixture or on collection."""
    output: str


def copy_packages(folder: Path) -> Path:
    """The packages and what is compiled of them, which an edit makes out of date."""
    for package in PACKAGES:
        # What another process is just writing.
        ignored = shutil.ignore_patterns("*.pyc.*")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    return folder


def run(copy: Path, attacks: Sequence[Attacks]) -> Outcome:
    """Some tests, on the packages of a copy and without this process's plugins."""
    ini = copy / "pytest.ini"
    ini.write_text(INI)
    files = sorted({attack.path for attack in attacks})
    select = " or ".join(f"({attack.select})" for attack in attacks)
    found = [copy / package.split("/")[0] for package in PACKAGES]
    command = [sys.executable, "-m", "pytest", "-c", str(ini), "--rootdir", str(ROOT)]
    command += ["-p", "no:cacheprovider", "--basetemp", str(copy / "tmp"), "--tb=short"]
    finished = subprocess.run(
        [*command, *files, "-k", select],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, [*found, ROOT])),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            # What they share is compiled once, also where nothing is compiled by default.
            "PYTHONDONTWRITEBYTECODE": "",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    last = finished.stdout.strip().rpartition("\n")[2]
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (failed|passed|error)", last)}
    return Outcome(counts, finished.stdout)


def run_mutant(folder: Path, mutant: Mutant) -> Outcome:
    copy = copy_packages(folder)
    for edit in mutant.edits:
        edit.apply(copy)
    return run(copy, [mutant.caught_by])


def one_a_file() -> list[Attacks]:
    """Without those that are skipped on this machine."""
    all_of_them = [mutant.caught_by for mutant in MUTANTS.values()]
    chosen = {a.path: a for a in all_of_them if not a.on_redis or shutil.which(PROGRAM)}
    return list(chosen.values())


def run_control(folder: Path) -> Outcome:
    """The attacks of one mutant a file; all of them pass on the original in this very run."""
    return run(copy_packages(folder), one_a_file())


@pytest.fixture(scope="module")
def runs() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        yield pool


@pytest.fixture(scope="module")
def control(runs: ThreadPoolExecutor, tmp_path_factory: pytest.TempPathFactory) -> Future[Outcome]:
    return runs.submit(run_control, tmp_path_factory.mktemp("control") / "copy")


@pytest.fixture(scope="module")
def outcomes(
    runs: ThreadPoolExecutor,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Future[Outcome]]:
    """The runs that the selected tests ask for, begun at once and done in turn."""
    folder = tmp_path_factory.mktemp("mutants")
    names = [name for name in MUTANTS if any(f"[{name}]" in i.name for i in request.session.items)]
    return {
        name: runs.submit(run_mutant, folder / str(at), MUTANTS[name])
        for at, name in enumerate(names)
    }


def test_the_attacks_gain_nothing_from_an_unedited_copy(
    control: Future[Outcome], outcomes: dict[str, Future[Outcome]]
) -> None:
    """The control: what fails below fails because of the edit, not because it is a copy."""
    outcome = control.result()
    assert outcome.counts.keys() == {"passed"}, outcome.output
    assert outcome.counts["passed"] >= len(one_a_file())


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[NEEDED] * m.caught_by.on_redis) for name, m in MUTANTS.items()],
)
def test_taking_a_protection_out_fails_the_attacks_it_stops(
    outcomes: dict[str, Future[Outcome]], name: str
) -> None:
    """Without it the attacker gains something, and every test that was chosen says so.

    That the log is then none that its readers accept is an error of the test's end beside that.
    """
    outcome = outcomes[name].result()
    assert {"failed"} <= outcome.counts.keys() <= {"failed", "error"}, outcome.output
    assert outcome.output.count(MUTANTS[name].shows) >= outcome.counts["failed"], outcome.output
