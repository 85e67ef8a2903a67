"""The key-encrypting key is split wholly, or nothing has changed; and never lost on the way."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from gridveil.protocol.errors import GridveilError, IntegrityLost, MalformedInput, Reason
from gridveil_services.keyholder import identity
from gridveil_services.keyholder.at_rest import create_key_file
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.keyholder.key_custody import (
    open_at_rest,
    read_shares,
    split_kek,
    write_key,
)
from gridveil_services.keyholder.sealed_key import SealedKey
from gridveil_services.keyholder.unsealing import Unsealing, give_shares
from tests.support.keyholders import make_config


@pytest.fixture
def config(tmp_path: Path) -> KeyHolderConfig:
    folder = tmp_path / "city"
    return replace(make_config(folder), sealed_key_encrypting_key_file=folder / "kek.sealed")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "shares"


def state(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refusal(call: Callable[[], object], reason: Reason = Reason.CONFIG_INVALID) -> str:
    with pytest.raises(GridveilError) as refused:
        call()
    assert refused.value.reason is reason
    return refused.value.message


def sealed_path(config: KeyHolderConfig) -> Path:
    assert config.sealed_key_encrypting_key_file is not None
    return config.sealed_key_encrypting_key_file


def test_each_officer_gets_one_file_for_nobody_else(config: KeyHolderConfig, out: Path) -> None:
    key = config.key_encrypting_key_file.read_bytes()
    paths = split_kek(config, out, count=5, threshold=3)
    assert [path.name for path in paths] == [f"share-{at}.json" for at in range(1, 6)]
    assert sorted(out.iterdir()) == paths
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}
    assert out.stat().st_mode & 0o777 == 0o700
    assert config.key_encrypting_key_file.read_bytes() == key
    shares = read_shares(config, paths[2:])
    assert SealedKey.load(sealed_path(config), config.city_id).open(shares) == key


def test_the_plain_key_goes_only_when_asked_to(
    config: KeyHolderConfig, out: Path, tmp_path: Path
) -> None:
    """Overwritten where it lay; and enough shares bring it back."""
    plain = config.key_encrypting_key_file
    key = plain.read_bytes()
    os.link(plain, tmp_path / "other-name")
    paths = split_kek(config, out, count=3, threshold=2, destroy_plain=True)
    assert not plain.exists()
    assert key[:8] not in (tmp_path / "other-name").read_bytes()
    write_key(config, read_shares(config, paths[1:]), plain)
    assert plain.read_bytes() == key
    assert plain.stat().st_mode & 0o777 == 0o600


def test_nothing_is_overwritten(config: KeyHolderConfig, out: Path) -> None:
    """Neither a sealed key, nor shares, nor the file that a key is written to."""
    paths = split_kek(config, out, count=3, threshold=2)
    before = state(out.parent)
    assert "already" in refusal(lambda: split_kek(config, out / "b", count=3, threshold=2))
    again = refusal(lambda: split_kek(config, out, count=3, threshold=2, replace=True))
    assert again == "shares is there and not empty"
    shares = read_shares(config, paths)
    plain = config.key_encrypting_key_file
    assert "is there already" in refusal(lambda: write_key(config, shares, plain))
    assert state(out.parent) == before


def test_a_key_that_opens_nothing_here_is_not_split(config: KeyHolderConfig, out: Path) -> None:
    """Else the sealed one would be found wrong when the right one is gone."""
    config.key_encrypting_key_file.unlink()
    create_key_file(config.key_encrypting_key_file)
    before = state(out.parent)
    call = lambda: split_kek(config, out, count=3, threshold=2, destroy_plain=True)  # noqa: E731
    assert "does not open" in refusal(call, Reason.PARTIAL_CORRUPT)
    assert state(out.parent) == before
    assert not out.exists()


def test_impossible_numbers_leave_no_files(config: KeyHolderConfig, out: Path) -> None:
    for count, threshold in ((3, 1), (2, 3), (17, 2)):
        call = lambda: split_kek(config, out, count=count, threshold=threshold)  # noqa: B023, E731
        assert "threshold" in refusal(call)
    assert not out.exists()
    assert not sealed_path(config).exists()


@pytest.mark.parametrize("last", range(11))
def test_a_split_cut_short_at_any_step_loses_no_key(
    config: KeyHolderConfig, out: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """A disk that fails once leaves the plain key and no shares, or a sealed one with them all."""
    key = config.key_encrypting_key_file.read_bytes()
    real, count = os.fsync, 0

    def failing(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == last + 1:
            raise OSError("input/output error")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="input/output"):
            split_kek(config, out, count=3, threshold=2, destroy_plain=True)
    if sealed_path(config).exists():
        shares = read_shares(config, sorted(out.iterdir())[:2])
        assert SealedKey.load(sealed_path(config), config.city_id).open(shares) == key
    else:
        assert config.key_encrypting_key_file.read_bytes() == key
        assert not out.exists() or not any(out.iterdir())


def test_an_officer_is_replaced_with_the_shares_of_others(
    config: KeyHolderConfig, out: Path
) -> None:
    """The same key, new shares: the old ones no longer fit."""
    key = config.key_encrypting_key_file.read_bytes()
    old = split_kek(config, out, count=3, threshold=2, destroy_plain=True)

    def split_anew(shares: list[Path], folder: str) -> list[Path]:
        return split_kek(config, out / folder, count=4, threshold=3, shares=shares, replace=True)

    assert "are needed" in refusal(lambda: split_anew(old[:1], "x"))
    new = split_anew(old[:2], "n")
    assert not config.key_encrypting_key_file.exists()
    sealed = SealedKey.load(sealed_path(config), config.city_id)
    assert sealed.open(read_shares(config, new[1:])) == key
    assert "another split" in refusal(lambda: read_shares(config, old))


def test_a_wrong_file_among_the_shares_is_named(config: KeyHolderConfig, out: Path) -> None:
    paths = split_kek(config, out, count=3, threshold=2)
    (out / "notes.txt").write_text("not a share")
    for bad, says in ((out / "notes.txt", "notes.txt is not"), (out / "gone", "gone cannot be")):
        assert says in refusal(lambda bad=bad: read_shares(config, [*paths, bad]))  # type: ignore[misc]
    assert read_shares(config, [Path("-")], paths[0].read_bytes())[0].index == 1
    assert "standard input" in refusal(lambda: read_shares(config, [Path("-")], b"{}"))


def test_the_sealed_key_of_another_city_or_damaged_is_refused(
    config: KeyHolderConfig, out: Path
) -> None:
    split_kek(config, out, count=3, threshold=2, destroy_plain=True)
    other = replace(config, policy=replace(config.policy, city_id=bytes(16)))
    assert "another city" in refusal(lambda: open_at_rest(other))
    sealed_path(config).write_bytes(sealed_path(config).read_bytes()[:-20])
    assert "damaged" in refusal(lambda: open_at_rest(config), Reason.PARTIAL_CORRUPT)


def test_without_a_sealed_key_the_plain_one_is_read(config: KeyHolderConfig, out: Path) -> None:
    """And the plain one is preferred: an operator may keep it in memory."""
    identity.load(config.state, open_at_rest(config))
    split_kek(config, out, count=3, threshold=2)
    identity.load(config.state, open_at_rest(config))
    config.key_encrypting_key_file.unlink()
    sealed_path(config).unlink()
    assert "cannot be read" in refusal(lambda: open_at_rest(config))
    unnamed = replace(config, sealed_key_encrypting_key_file=None)
    assert "names no" in refusal(lambda: split_kek(unnamed, out, count=3, threshold=2))


def test_shares_without_a_waiting_key_holder_are_not_taken(
    config: KeyHolderConfig, out: Path
) -> None:
    shares = read_shares(config, split_kek(config, out, count=3, threshold=2))
    message = refusal(lambda: give_shares(config.state, shares), Reason.KEYHOLDER_UNAVAILABLE)
    assert message == "no key-holder waits for shares: start it first"


def message(*paths: Path) -> bytes:
    return b"[" + b",".join(path.read_bytes() for path in paths) + b"]"


def test_a_refused_message_takes_back_what_came_before(config: KeyHolderConfig, out: Path) -> None:
    """All shares of a message count or none; what others gave earlier stays."""
    paths = split_kek(config, out, count=4, threshold=3)
    sealed = SealedKey.load(sealed_path(config), config.city_id)
    elsewhere = split_kek(config, out / "again", count=4, threshold=3, replace=True)
    unsealing = Unsealing(sealed, bytes)
    assert unsealing.take(message(paths[0])).given == 1
    for bad in (
        message(paths[1], paths[0]),
        message(paths[1], paths[1]),
        message(elsewhere[2]),
        message(paths[1])[:-1],
        b"",
        b"\xff",
        b"{}",
        b"[1]",
        message(paths[1]).replace(b'"index": 2', b'"index": 3'),
    ):
        progress = unsealing.take(bad)
        assert progress.refused
        assert (progress.given, unsealing.result) == (1, None)
    assert unsealing.take(message()).given == 1
    done = unsealing.take(message(paths[1], paths[3]))
    assert (done.given, done.needed, done.refused) == (3, 3, "")
    assert unsealing.result == config.key_encrypting_key_file.read_bytes()


def test_a_key_that_the_state_refuses_does_not_unseal(config: KeyHolderConfig, out: Path) -> None:
    paths = split_kek(config, out, count=2, threshold=2)

    def refusing(_key: bytearray) -> NoReturn:
        raise IntegrityLost(Reason.PARTIAL_CORRUPT, "not the state's")

    unsealing: Unsealing[None] = Unsealing(
        SealedKey.load(sealed_path(config), config.city_id), refusing
    )
    assert unsealing.take(message(*paths)).refused == "not the state's"
    assert unsealing.result is None


def test_a_configuration_names_the_sealed_key(tmp_path: Path) -> None:
    """Beside the configuration unless it says otherwise; unknown keys stay refused."""
    from tests.unit.test_keyholder_config import TEXT, load

    assert load(tmp_path, TEXT).sealed_key_encrypting_key_file == tmp_path / "kek.sealed"
    named = TEXT.replace("\n\n[tls]", '\nsealed_key_encrypting_key_file = "/srv/k"\n\n[tls]')
    assert load(tmp_path, named).sealed_key_encrypting_key_file == Path("/srv/k")
    with pytest.raises(MalformedInput):
        load(tmp_path, named.replace('"/srv/k"', "1"))
