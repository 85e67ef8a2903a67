"""A released total is verified by a script that shares no code with Gridveil, and needs no HE."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType

import pytest
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey
from typer.testing import CliRunner

from gridveil.cli.app import app
from gridveil.export import encode_export
from gridveil.operator import Operator, ReleasedTotal
from gridveil.protocol.errors import GridveilError
from gridveil.protocol.release import OPENED_ENTRY_BYTES
from gridveil.registrar import Roster
from tests.support.released import WINDOW, ReleasedCity, release_window

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "verify_total.py"
PACKAGES = ("PyNaCl", "rbcl")
REFUSALS = (SystemExit, CryptoError, ValueError, TypeError, IndexError, ZeroDivisionError)


@dataclass(frozen=True)
class Exported:
    """One export with the roster and one without, of the same window."""

    city: ReleasedCity
    identity_key: bytes
    file: bytes
    without_roster: bytes
    fields: dict[str, range]
    """Where in ``file`` each field is."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_of(release_window(tmp_path_factory.mktemp("city")))


def export_of(city: ReleasedCity) -> Exported:
    with city.keyholder(WINDOW + 1) as keyholder:
        head = keyholder.roster.in_force(WINDOW)
        assert head is not None
        signature = keyholder.roster.sign(head)
    roster = Roster(head, tuple(sorted(city.roster.values())), signature)
    with city.totals(), Operator.open(city.paths.profile("auditor")) as auditor:
        outcome = auditor.get(WINDOW)
        assert isinstance(outcome, ReleasedTotal)
        chunks: list[bytes] = []
        auditor.verify(outcome, city.roster, chunks.append)
        proof = auditor.inclusion_proof(outcome)
        key = auditor._profile.identity_key
    encode = partial(encode_export, outcome, b"".join(chunks), proof, key)
    return Exported(city, key, encode(roster), encode(None), _fields(encode(roster)))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_total", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_finds_the_total_that_the_meters_made(
    exported: Exported, script: ModuleType
) -> None:
    window, sums, count, records, exact = verified(script, exported, exported.file)
    assert (window, count) == (WINDOW, len(exported.city.meters))
    assert tuple(value for _, value in sums) == exported.city.truth
    assert records >= 3
    assert exact == "exact"
    assert verified(script, exported, exported.without_roster, roster=False)[1] == sums


def test_a_total_without_a_lane_verifies(tmp_path: Path, script: ModuleType) -> None:
    found = export_of(release_window(tmp_path, meters=700, liar=True))
    _, sums, count, *_ = verified(script, found, found.file)
    assert count == 700 - len(found.city.left_out) < 700
    assert tuple(value for _, value in sums) == found.city.truth


def test_the_command_exports_what_it_verified(exported: Exported, tmp_path: Path) -> None:
    file = tmp_path / "window.export"
    profile = str(exported.city.paths.profile("auditor"))
    verify = ["totals", "verify", str(WINDOW), "--profile", profile, "--export", str(file)]
    with exported.city.totals():
        ended = CliRunner().invoke(app, verify)
    assert ended.exit_code == 0, ended.stderr
    assert file.read_bytes() == exported.without_roster


def test_a_fresh_environment_without_gridveil_verifies_a_total(
    exported: Exported, tmp_path: Path
) -> None:
    python = fresh_environment(tmp_path / "fresh")
    file = tmp_path / "window.export"
    file.write_bytes(exported.file)
    run = partial(subprocess.run, capture_output=True, text=True, check=False, timeout=60)

    for missing in ("tenseal", "gridveil", "gridveil_services", "numpy", "google.protobuf"):
        assert run([python, "-I", "-c", f"import {missing}"]).returncode == 1
    verified = run([python, "-I", SCRIPT, file, exported.identity_key.hex()])
    file.write_bytes(exported.without_roster)
    plain = run([python, "-I", SCRIPT, file, exported.identity_key.hex(), "--without-roster"])
    strict = run([python, "-I", SCRIPT, file, exported.identity_key.hex()])

    assert verified.returncode == plain.returncode == 0, verified.stderr
    assert verified.stdout.startswith(f"VERIFIED: window {WINDOW}, ")
    assert f"{exported.city.truth[0]}" in verified.stdout
    assert strict.returncode == 1
    assert strict.stderr.startswith("NOT VERIFIED")


def test_no_byte_of_the_file_can_be_changed(exported: Exported, script: ModuleType) -> None:
    """All bytes of the short fields, some hundred of the roster and the entries."""
    source = random.Random(0)
    for name, places in exported.fields.items():
        long = len(places) > 1_000
        for at in source.sample(places, 150) if long else places:
            changed = bytearray(exported.file)
            changed[at] ^= source.randrange(1, 256)
            assert refuses(script, exported, bytes(changed)), (name, at)


def test_no_byte_without_the_roster_can_be_changed(exported: Exported, script: ModuleType) -> None:
    """But for a meter's own signature, which then stands for nothing, only through the tree."""
    source, file = random.Random(1), exported.without_roster
    for at in source.sample(range(len(file)), 300):
        changed = file[:at] + bytes([file[at] ^ source.randrange(1, 256)]) + file[at + 1 :]
        assert refuses(script, exported, changed, roster=False), at


def test_each_field_of_an_entry_is_looked_at(exported: Exported, script: ModuleType) -> None:
    entries = exported.fields["entries"]
    for at in range(entries.start + 4 + OPENED_ENTRY_BYTES, entries.stop)[:OPENED_ENTRY_BYTES]:
        changed = bytearray(exported.file)
        changed[at] ^= 1
        assert refuses(script, exported, bytes(changed)), at


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file[:-1],
        lambda file: file + b"\0",
        lambda file: b"",
        lambda file: file[: len(file) // 2],
        lambda file: file + file,
    ],
)
def test_a_file_that_is_not_whole_is_refused(
    exported: Exported, script: ModuleType, change: Callable[[bytes], bytes]
) -> None:
    assert refuses(script, exported, change(exported.file))


def test_another_identity_key_is_refused(exported: Exported, script: ModuleType) -> None:
    other = bytes(SigningKey.generate().verify_key)
    with pytest.raises(REFUSALS):
        script.verify(exported.file, VerifyKey(other))


def test_two_entries_cannot_change_places(exported: Exported, script: ModuleType) -> None:
    entries = exported.fields["entries"]
    start, size = entries.start + 4, OPENED_ENTRY_BYTES
    first, second = (exported.file[start + size * n :][:size] for n in (0, 1))
    swapped = exported.file[:start] + second + first + exported.file[start + 2 * size :]
    assert refuses(script, exported, swapped)


def test_what_is_exported_is_what_was_proven(exported: Exported) -> None:
    """Another window's record, or a checkpoint of another key, is not put into a file."""
    with (
        exported.city.totals(),
        Operator.open(exported.city.paths.profile("auditor")) as auditor,
    ):
        outcome = auditor.get(WINDOW)
        assert isinstance(outcome, ReleasedTotal)
        proof = auditor.inclusion_proof(outcome)
    other = bytes(SigningKey.generate().verify_key)
    with pytest.raises(GridveilError):
        encode_export(outcome, b"", proof, other)
    proof.record += b"\x08\x01"
    with pytest.raises(GridveilError):
        encode_export(outcome, b"", proof, exported.identity_key)


Found = tuple[int, list[tuple[str, int]], int, int, str]
"""Window, sums, meters, records of the log, and whether the total is exact."""


def verified(script: ModuleType, exported: Exported, file: bytes, *, roster: bool = True) -> Found:
    found: Found = script.verify(file, VerifyKey(exported.identity_key), roster)
    return found


def refuses(script: ModuleType, exported: Exported, file: bytes, *, roster: bool = True) -> bool:
    try:
        verified(script, exported, file, roster=roster)
    except REFUSALS:
        return True
    return False


def fresh_environment(folder: Path) -> Path:
    """A virtual environment with the script's two packages and what they ask for; its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    wanted = list(PACKAGES)
    for name in wanted:
        found = distribution(name)
        for required in found.requires or []:
            if ";" not in required and (plain := required.split("~")[0].split(">")[0].strip()):
                wanted.append(plain)
        if name == "PyNaCl" and "cffi" not in wanted:
            wanted.append("cffi")
        for file in found.files or []:
            top = packages / file.parts[0]
            if file.parts[0] != ".." and not top.exists():
                top.symlink_to(Path(str(found.locate_file(file.parts[0]))))
    return folder / "bin" / Path(sys.executable).name


def _fields(file: bytes) -> dict[str, range]:
    names = ("total", "signature", "head", "head_signature", "roster", "entries", "proof")
    at, found = 19, {"domain": range(19)}
    for name in names:
        size = 4 + int.from_bytes(file[at : at + 4], "little")
        found[name] = range(at, at + size)
        at += size
    return found | {"end": range(at, len(file))}
