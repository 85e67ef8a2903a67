"""Destroyed epochs stay destroyed: whatever is left, wherever the destruction was cut short."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from gridveil.clock import ManualClock
from gridveil.protocol.errors import GridveilError, IntegrityLost
from gridveil_services.keyholder import identity
from gridveil_services.keyholder.at_rest import AtRest, destroy_file
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.keyholder.epoch_store import EpochStore
from gridveil_services.keyholder.keyholder import KeyHolder
from tests.support.keyholders import make_config
from tests.support.reports import WINDOW

STEPS = ((os, "fsync"), (Path, "rename"), (Path, "unlink"), (shutil, "rmtree"))
"""What destruction consists of, as far as a disk can tell."""


@pytest.fixture
def config(tmp_path: Path) -> KeyHolderConfig:
    config = make_config(tmp_path / "city")
    KeyHolder(config, ManualClock(WINDOW)).close()
    return config


def store_of(config: KeyHolderConfig) -> EpochStore:
    at_rest = AtRest.load(config.key_encrypting_key_file, config.city_id)
    key = identity.load(config.state, at_rest)
    return EpochStore(config.state / "epochs", at_rest, bytes(key.verify_key), config.city_id)


def first_epoch(config: KeyHolderConfig) -> tuple[bytes, Path]:
    epoch_id = next(store_of(config).ids())
    return epoch_id, config.state / "epochs" / epoch_id.hex()


@contextmanager
def killed_before_step(patch: pytest.MonkeyPatch, last: int) -> Iterator[list[str]]:
    """The process ends before step ``last``; yields the names of the steps that were reached."""
    reached: list[str] = []

    def stepping(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            if len(reached) == last:
                raise SystemExit
            reached.append(name)
            return real(*arguments, **options)

        return step

    with patch.context() as patched:
        for owner, name in STEPS:
            patched.setattr(owner, name, stepping(name, getattr(owner, name)))
        yield reached


def cut_short_everywhere(
    config: KeyHolderConfig, patch: pytest.MonkeyPatch, destroy: Callable[[KeyHolderConfig], object]
) -> Iterator[tuple[int, KeyHolderConfig]]:
    """A copy of the city for each step before which its destruction of an epoch is cut short."""
    folder = config.state.parent
    for last in range(50):
        copy = folder.with_name(f"cut-{last}")
        shutil.copytree(folder, copy)
        moved = replace(
            config,
            state=copy / "state",
            published=copy / "published",
            key_encrypting_key_file=copy / "kek",
        )
        try:
            with killed_before_step(patch, last):
                destroy(moved)
        except SystemExit:
            yield last, moved
        else:
            assert last >= 9  # rename, three folders, two files with an unlink each, rmtree
            return
    raise AssertionError("it never ended")


def test_nothing_that_remains_opens_a_copy_of_the_secrets(config: KeyHolderConfig) -> None:
    """Whoever copied the sealed secrets and later takes the whole machine has no key for them."""
    epoch_id, folder = first_epoch(config)
    copy = (folder / "secrets").read_bytes()
    key = (folder / "key").read_bytes()
    at_rest = AtRest.load(config.key_encrypting_key_file, config.city_id)
    assert at_rest.with_key("epoch key", epoch_id, key).open("epoch secrets", epoch_id, copy)
    store_of(config).delete(epoch_id)
    remaining = [path for path in config.state.parent.rglob("*") if path.is_file()]
    assert config.key_encrypting_key_file in remaining
    for path in remaining:
        with pytest.raises(GridveilError):
            AtRest(path.read_bytes(), config.city_id).open("epoch secrets", epoch_id, copy)
        with pytest.raises(GridveilError):
            at_rest.with_key("epoch key", epoch_id, path.read_bytes())


@pytest.mark.parametrize("name", ["key", "secrets"])
def test_one_file_without_the_other_opens_nothing(config: KeyHolderConfig, name: str) -> None:
    epoch_id, folder = first_epoch(config)
    store = store_of(config)
    assert store.load(epoch_id)
    assert not store.is_destroyed(epoch_id)
    (folder / name).unlink()
    assert store.is_destroyed(epoch_id)
    with pytest.raises(IntegrityLost):
        store.load(epoch_id)


def test_the_key_of_another_epoch_opens_nothing(config: KeyHolderConfig) -> None:
    one, other = sorted((config.state / "epochs").iterdir())
    shutil.copy(one / "key", other / "key")
    with pytest.raises(IntegrityLost):
        store_of(config).load(bytes.fromhex(other.name))


def test_each_epoch_has_a_key_of_its_own(config: KeyHolderConfig) -> None:
    """Secrets of one epoch do not open with another's key, whatever they claim to be."""
    store, at_rest = store_of(config), AtRest.load(config.key_encrypting_key_file, config.city_id)
    one, other = list(store.ids())
    keys = {
        epoch_id: at_rest.with_key(
            "epoch key", epoch_id, (config.state / "epochs" / epoch_id.hex() / "key").read_bytes()
        )
        for epoch_id in (one, other)
    }
    sealed = keys[one].seal("x", one, b"secret")
    assert keys[one].open("x", one, sealed) == b"secret"
    with pytest.raises(IntegrityLost):
        keys[other].open("x", one, sealed)


@pytest.mark.parametrize("name", ["key", "secrets"])
def test_the_bytes_are_overwritten_where_they_lie(
    config: KeyHolderConfig, tmp_path: Path, name: str
) -> None:
    """Another name of the same file, made before, holds nothing of the old bytes afterwards."""
    epoch_id, folder = first_epoch(config)
    before = (folder / name).read_bytes()
    os.link(folder / name, tmp_path / "kept")
    store_of(config).delete(epoch_id)
    after = (tmp_path / "kept").read_bytes()
    assert len(after) == len(before)
    pieces = {before[at : at + 8] for at in range(0, len(before) - 8, 8)}
    assert not any(piece in after for piece in pieces)


def test_what_a_cut_short_write_left_is_overwritten_too(
    config: KeyHolderConfig, tmp_path: Path
) -> None:
    epoch_id, folder = first_epoch(config)
    (folder / "key.new").write_bytes(b"sealed, and never renamed")
    os.link(folder / "key.new", tmp_path / "kept")
    store_of(config).delete(epoch_id)
    assert b"sealed" not in (tmp_path / "kept").read_bytes()


def test_destroying_twice_or_what_is_not_there_changes_nothing(config: KeyHolderConfig) -> None:
    epoch_id, folder = first_epoch(config)
    store = store_of(config)
    other = [path.name for path in folder.parent.iterdir() if path != folder]
    for _ in range(2):
        store.delete(epoch_id)
        assert [path.name for path in folder.parent.iterdir()] == other
    store.delete(bytes(16))
    assert [path.name for path in folder.parent.iterdir()] == other


def test_a_destruction_cut_short_at_any_step_has_begun_and_is_ended(
    config: KeyHolderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either nothing happened yet, or the epoch counts as destroyed and does not open again."""
    epoch_id, _ = first_epoch(config)
    begun = []

    def destroy(moved: KeyHolderConfig) -> None:
        store_of(moved).delete(epoch_id)

    for last, moved in cut_short_everywhere(config, monkeypatch, destroy):
        store = store_of(moved)
        begun.append(store.is_destroyed(epoch_id))
        assert begun[-1] == (last > 0)
        if begun[-1]:
            with pytest.raises(IntegrityLost, match="was destroyed"):
                store.load(epoch_id)
        else:
            store.load(epoch_id)
        store.delete(epoch_id)
        assert epoch_id not in set(store.ids())


def test_a_disk_that_fails_leaves_a_destruction_to_be_ended(
    config: KeyHolderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not overwritten durably is not removed: it would lie there unreachable."""
    epoch_id, folder = first_epoch(config)
    store = store_of(config)

    def failing(_descriptor: int) -> NoReturn:
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="input/output"):
            store.delete(epoch_id)
        with pytest.raises(OSError, match="input/output"):
            destroy_file(folder / "secrets")
    assert (folder / "secrets").exists()
    assert store.is_destroyed(epoch_id)
    store.delete(epoch_id)
    assert not folder.exists()
