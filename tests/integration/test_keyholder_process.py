"""The key-holder as a process: starts whole, or refuses with one line and exit code 2."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gridveil.clock import SystemClock
from gridveil_services.bootstrap.city import CityOptions, create_city
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.keyholder.keyholder import KeyHolder
from tests.support.ports import spare_addresses


@pytest.fixture
def paths(tmp_path: Path) -> CityPaths:
    return make_city(tmp_path / "city", development=True)


def make_city(folder: Path, *, development: bool) -> CityPaths:
    return create_city(
        folder, CityOptions(min_cohort=100, development=development, addresses=spare_addresses())
    )


def command(paths: CityPaths, *arguments: str) -> list[str]:
    serve = [sys.executable, "-m", "gridveil.cli", "keyholder", "serve"]
    return [*serve, "--config", str(paths.config("keyholder")), *arguments]


@contextmanager
def serving(paths: CityPaths, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A key-holder that serves; killed at the end if it still runs."""
    with subprocess.Popen(
        command(paths, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = json.loads(process.stdout.readline())
            assert line.keys() == {"event", "role", "address"}
            assert (line["event"], line["role"]) == ("serving", "keyholder")
            yield process
        finally:
            process.kill()


def refusal(paths: CityPaths, *arguments: str) -> str:
    """The one line with which a key-holder refuses to start."""
    run = subprocess.run(
        command(paths, *arguments), capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stdout) == (2, "")
    (line,) = run.stderr.splitlines()
    return line


def test_it_says_where_it_serves_and_ends_well_on_sigterm(paths: CityPaths) -> None:
    with serving(paths, "--clock-origin", "1767225600@1767225600") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_it_starts_again_after_a_kill(paths: CityPaths) -> None:
    with serving(paths) as process:
        process.kill()
        process.wait(30)
    with serving(paths):
        pass


def test_a_second_process_on_the_same_state_is_refused(paths: CityPaths) -> None:
    with serving(paths):
        assert refusal(paths).startswith("KEYHOLDER_UNAVAILABLE: another process")


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def other_kek(folder: Path) -> None:
    flip(folder / "kek", 5)


def flipped_log(folder: Path) -> None:
    flip(folder / "published" / "log" / "records", 40)


def broken_roster(folder: Path) -> None:
    (folder / "state" / "roster.db").write_bytes(b"not a database, and long enough to look at")


def unknown_key(folder: Path) -> None:
    path = folder / "keyholder.toml"
    path.write_text("surprise = 1\n" + path.read_text())


def no_tls_key(folder: Path) -> None:
    (folder / "tls" / "key.pem").unlink()


def state_is_a_file(folder: Path) -> None:
    shutil.rmtree(folder / "state" / "spool")
    (folder / "state" / "spool").touch()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (other_kek, "PARTIAL_CORRUPT: the stored identity key does not open"),
        (flipped_log, "LOG_CORRUPT"),
        (broken_roster, "PARTIAL_CORRUPT: the roster"),
        (unknown_key, "CONFIG_INVALID: keyholder.toml"),
        (no_tls_key, "CONFIG_INVALID"),
        (state_is_a_file, "spool"),
    ],
)
def test_nothing_is_served_from_a_state_in_doubt(
    paths: CityPaths, damage: Callable[[Path], None], says: str
) -> None:
    KeyHolder(KeyHolderConfig.load(paths.config("keyholder")), SystemClock()).close()
    damage(paths.role("keyholder"))
    assert says in refusal(paths)


def test_a_scaled_clock_is_for_development_cities_only(tmp_path: Path) -> None:
    paths = make_city(tmp_path / "city", development=False)
    assert refusal(paths, "--clock-rate", "60").startswith("CONFIG_INVALID: a scaled clock")


def test_a_missing_configuration_is_named(paths: CityPaths) -> None:
    paths.config("keyholder").unlink()
    assert refusal(paths) == "CONFIG_INVALID: keyholder.toml does not exist"
