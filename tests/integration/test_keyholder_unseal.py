"""No single officer starts a key-holder: it serves once enough shares were given, not before."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from gridveil_services.bootstrap.city import CityOptions, create_city
from gridveil_services.bootstrap.layout import CityPaths
from tests.support.ports import spare_addresses

pytestmark = pytest.mark.long

PATIENCE_S = 60


class City:
    """A city whose key-encrypting key can be split, and every word that was said about it."""

    def __init__(self, folder: Path) -> None:
        self.paths: CityPaths = create_city(
            folder / "city", CityOptions(min_cohort=100, addresses=spare_addresses())
        )
        self.keyholder = self.paths.role("keyholder")
        self.kek = self.keyholder / "kek"
        self.key = self.kek.read_bytes()
        self.shares: list[Path] = []
        self.said: list[str] = []

    def command(self, name: str, *arguments: object) -> list[str]:
        config = ["--config", str(self.paths.config("keyholder"))]
        command = [sys.executable, "-m", "gridveil.cli", "keyholder", name]
        return [*command, *config, *map(str, arguments)]

    def run(self, name: str, *arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        done = subprocess.run(
            self.command(name, *arguments),
            input=stdin,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        self.said += [out, err]
        return done.returncode, out, err

    def split(self, count: int, threshold: int, *arguments: object) -> None:
        out = self.paths.folder.parent / f"shares-{len(self.shares)}"
        numbers = ("--shares", count, "--threshold", threshold, "--out", out)
        assert self.run("split-kek", *numbers, *arguments)[0] == 0
        self.shares = sorted(out.iterdir())

    def unseal(self, *shares: Path, to: Path | None = None) -> tuple[int, str, str]:
        options = [part for share in shares for part in ("--share", share)]
        return self.run("unseal", *options, *(("--to", to) if to else ()))

    def refusal(self, *shares: Path, to: Path | None = None) -> str:
        code, out, err = self.unseal(*shares, to=to)
        assert (code, out) == (2, "")
        (line,) = err.splitlines()
        return line

    @contextmanager
    def waiting(self) -> Iterator[subprocess.Popen[str]]:
        """A key-holder that has no key yet; killed at the end if it still runs."""
        with self.started() as process:
            assert process.stderr is not None
            line = json.loads(process.stderr.readline())
            assert line["event"] == "sealed: waiting for officers' shares"
            yield process

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            self.command("serve"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()
                self.said += process.communicate()

    def ends_serving(self, process: subprocess.Popen[str]) -> bool:
        """Whether it says that it serves, and ends well on a signal."""
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        return line["event"] == "serving" and process.wait(PATIENCE_S) == 0

    def secrets(self) -> Sequence[str]:
        shares = [json.loads(path.read_bytes())["share"] for path in self.shares]
        return [self.key.hex(), *shares]


@pytest.fixture
def city(tmp_path: Path) -> Iterator[City]:
    city = City(tmp_path)
    yield city
    for secret in city.secrets():
        assert not any(secret in word for word in city.said)


def test_three_officers_start_a_key_holder_one_after_the_other(city: City) -> None:
    """With two shares it still waits; the key never lies on the disk again."""
    city.split(5, 3, "--destroy-plain")
    assert not city.kek.exists()
    with city.waiting() as process:
        given = (city.unseal(city.shares[4]), city.unseal(city.shares[1]))
        assert [out for _, out, _ in given] == [
            "1 of 3 shares given: still sealed.\n",
            "2 of 3 shares given: still sealed.\n",
        ]
        # An answer about shares is one of a key-holder that waits: it serves nothing yet.
        assert "share 2 was given already" in city.refusal(city.shares[1])
        assert city.run("unseal", "--share", "-", stdin=city.shares[0].read_bytes())[:2] == (
            0,
            "Unsealed.\n",
        )
        arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert city.ends_serving(process)
    for secret in city.secrets():
        for place in (arguments, environment):
            assert secret.encode() not in place
            assert bytes.fromhex(secret) not in place
    for path in city.keyholder.rglob("*"):
        assert not path.is_file() or city.key not in path.read_bytes()
    assert not (city.keyholder / "state" / "unseal.sock").exists()


def test_one_share_too_few_serves_nothing(city: City) -> None:
    """Two of three officers at once are still too few; a signal ends the waiting well."""
    city.split(5, 3, "--destroy-plain")
    socket = city.keyholder / "state" / "unseal.sock"
    with city.waiting() as process:
        assert not any(path.stat().st_mode & 0o077 for path in (socket, socket.parent))
        assert city.unseal(*city.shares[:2])[1] == "2 of 3 shares given: still sealed.\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""
    assert not socket.exists()
    # What was given is forgotten: the next start asks for all of them.
    with city.waiting():
        assert city.unseal(city.shares[3])[1] == "1 of 3 shares given: still sealed.\n"


def test_a_share_that_is_not_of_this_key_changes_nothing(city: City, tmp_path: Path) -> None:
    """It is named before the key-holder hears of it, and the right shares work afterwards."""
    other = City(tmp_path / "other")
    other.split(3, 2)
    city.split(3, 2)
    old = city.shares
    city.split(3, 2, "--replace", "--destroy-plain")
    damaged = tmp_path / "damaged.json"
    damaged.write_bytes(city.shares[0].read_bytes().replace(b'"index": 1', b'"index": 3'))
    with city.waiting() as process:
        for bad, says in (
            ((other.shares[0],), "share-1.json is a share of another city's key"),
            ((old[0],), "share-1.json is a share of another split"),
            ((damaged,), "damaged.json is damaged"),
            ((city.shares[0], tmp_path / "gone"), "gone cannot be read"),
            ((city.kek.with_name("keyholder.toml"),), "keyholder.toml is not a share"),
            ((city.shares[0], city.shares[0]), "share 1 was given already"),
        ):
            assert city.refusal(*bad).startswith(f"CONFIG_INVALID: {says}")
        assert city.unseal(*city.shares[1:])[1] == "Unsealed.\n"
        assert city.ends_serving(process)


def test_the_key_is_written_where_an_operator_says(city: City, tmp_path: Path) -> None:
    """To memory, say, from where a key-holder starts without officers until the machine does."""
    city.split(3, 2, "--destroy-plain")
    to = tmp_path / "key-in-memory"
    assert city.refusal(city.shares[0], to=to) == (
        "CONFIG_INVALID: 2 different shares are needed, 1 given"
    )
    assert "was given twice" in city.refusal(city.shares[0], city.shares[0], to=to)
    assert not to.exists()
    assert city.unseal(*city.shares[:2], to=to)[0] == 0
    assert to.read_bytes() == city.key
    assert to.stat().st_mode & 0o777 == 0o600
    assert "is there already" in city.refusal(*city.shares[:2], to=to)
    to.rename(city.kek)
    with city.started() as process:
        assert city.ends_serving(process)


def test_a_key_holder_that_was_killed_while_it_waited_starts_again(city: City) -> None:
    """And a second one beside it is refused, so that no share goes astray."""
    city.split(2, 2, "--destroy-plain")
    with city.waiting() as process:
        process.kill()
        process.wait(PATIENCE_S)
    assert (city.keyholder / "state" / "unseal.sock").exists()
    assert "no key-holder waits for shares" in city.refusal(city.shares[0])
    with city.waiting() as process:
        code, out, err = city.run("serve")
        assert (code, out) == (2, "")
        assert "another process waits for shares" in err
        assert city.unseal(*city.shares)[1] == "Unsealed.\n"
        assert city.ends_serving(process)


def test_what_is_wrong_with_its_files_is_said_before_officers_come(city: City) -> None:
    city.split(2, 2, "--destroy-plain")
    (city.keyholder / "tls" / "key.pem").unlink()
    code, out, err = city.run("serve")
    assert (code, out) == (2, "")
    assert err.startswith("CONFIG_INVALID")
    assert len(err.splitlines()) == 1
