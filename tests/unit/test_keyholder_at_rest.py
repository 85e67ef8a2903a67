"""Secrets at rest open with the right key, in the right place, unchanged, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridveil.protocol.errors import GridveilError, IntegrityLost, MalformedInput, Reason
from gridveil_services.keyholder import identity
from gridveil_services.keyholder.at_rest import NO_EPOCH, AtRest, create_key_file

CITY = bytes(range(16))
EPOCH = bytes([7] * 16)
KEY = bytes([3] * 32)
SECRET = b"a secret that must not be readable"


def test_what_was_sealed_opens() -> None:
    sealed = AtRest(KEY, CITY).seal("epoch secrets", EPOCH, SECRET)
    assert SECRET not in sealed
    assert AtRest(KEY, CITY).open("epoch secrets", EPOCH, sealed) == SECRET


def test_sealing_twice_gives_different_bytes() -> None:
    at_rest = AtRest(KEY, CITY)
    assert at_rest.seal("a", EPOCH, SECRET) != at_rest.seal("a", EPOCH, SECRET)


@pytest.mark.parametrize(
    ("key", "city", "purpose", "epoch"),
    [
        (bytes([4] * 32), CITY, "epoch secrets", EPOCH),
        (KEY, bytes(16), "epoch secrets", EPOCH),
        (KEY, CITY, "identity key", EPOCH),
        (KEY, CITY, "epoch secrets", bytes(16)),
    ],
)
def test_another_key_city_purpose_or_epoch_opens_nothing(
    key: bytes, city: bytes, purpose: str, epoch: bytes
) -> None:
    sealed = AtRest(KEY, CITY).seal("epoch secrets", EPOCH, SECRET)
    with pytest.raises(IntegrityLost):
        AtRest(key, city).open(purpose, epoch, sealed)


def test_no_changed_byte_opens() -> None:
    at_rest = AtRest(KEY, CITY)
    sealed = at_rest.seal("epoch secrets", EPOCH, SECRET)
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(IntegrityLost):
            at_rest.open("epoch secrets", EPOCH, bytes(changed))
    for length in range(len(sealed)):
        with pytest.raises(IntegrityLost):
            at_rest.open("epoch secrets", EPOCH, sealed[:length])


def test_a_key_file_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "kek"
    create_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_bytes()) == 32
    with pytest.raises(MalformedInput):
        create_key_file(path)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_file_of_another_length_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "kek"
    path.write_bytes(bytes(length))
    path.chmod(0o600)
    with pytest.raises(MalformedInput) as refusal:
        AtRest.load(path, CITY)
    assert refusal.value.reason is Reason.CONFIG_INVALID


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o620])
def test_a_key_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "kek"
    create_key_file(path)
    path.chmod(mode)
    with pytest.raises(MalformedInput) as refusal:
        AtRest.load(path, CITY)
    assert refusal.value.reason is Reason.CONFIG_INVALID


def test_a_missing_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MalformedInput):
        AtRest.load(tmp_path / "kek", CITY)


def test_the_identity_is_made_once_and_comes_back(tmp_path: Path) -> None:
    at_rest = AtRest(KEY, CITY)
    public = identity.create(tmp_path / "state", at_rest)
    key = identity.load(tmp_path / "state", at_rest)
    assert bytes(key.verify_key) == public
    assert bytes(key) not in (tmp_path / "state" / "identity.key").read_bytes()
    with pytest.raises(MalformedInput):
        identity.create(tmp_path / "state", at_rest)


def test_an_identity_under_another_key_or_lost_does_not_load(tmp_path: Path) -> None:
    with pytest.raises(IntegrityLost):
        identity.load(tmp_path, AtRest(KEY, CITY))
    identity.create(tmp_path, AtRest(KEY, CITY))
    with pytest.raises(IntegrityLost):
        identity.load(tmp_path, AtRest(bytes(32), CITY))
    sealed = AtRest(KEY, CITY).seal("identity key", NO_EPOCH, b"short")
    (tmp_path / "identity.key").write_bytes(sealed)
    with pytest.raises(GridveilError):
        identity.load(tmp_path, AtRest(KEY, CITY))
