"""A key-holder starts again, whatever cut the making or the destruction of an epoch short."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from gridveil.clock import ManualClock
from gridveil.protocol.errors import Reason, Unavailable
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.keyholder.keyholder import KeyHolder
from tests.support.keyholders import make_config
from tests.support.reports import WINDOW

DAY = 86_400
ATTEMPTS = 3


@pytest.fixture
def config(tmp_path: Path) -> KeyHolderConfig:
    return make_config(tmp_path / "city")


def epochs(config: KeyHolderConfig) -> set[str]:
    return {folder.name for folder in (config.state / "epochs").iterdir()}


def starts(config: KeyHolderConfig, now: float) -> bool:
    """Whether a key-holder starts and has keys for the window at ``now``."""
    keyholder = KeyHolder(config, ManualClock(now))
    try:
        window = keyholder.policy.rules.start_at(now)
        return keyholder.ring.for_window(window) is not None
    finally:
        keyholder.close()


def test_a_failed_log_gets_no_epochs_however_often_one_is_due(config: KeyHolderConfig) -> None:
    """Keys that cannot be logged are not made, so that the next start finds none of them."""
    keyholder = KeyHolder(config, ManualClock(WINDOW))
    before = epochs(config)
    keyholder.ledger.fail()
    for _ in range(ATTEMPTS):
        with pytest.raises(Unavailable) as refusal:
            keyholder.ring.ensure(WINDOW + DAY)
        assert refusal.value.reason is Reason.KEYHOLDER_UNAVAILABLE
    keyholder.close()
    assert epochs(config) == before
    assert starts(config, WINDOW + DAY)


def test_a_full_disk_leaves_no_pieces_of_epochs(
    config: KeyHolderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt on a full disk takes back what it wrote, so that the next start is whole."""
    keyholder = KeyHolder(config, ManualClock(WINDOW))
    before = epochs(config)

    def full(_descriptor: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "no space left on device")

    for _ in range(ATTEMPTS):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="no space"):
                keyholder.ring.ensure(WINDOW + DAY)
    keyholder.close()
    assert epochs(config) == before
    assert starts(config, WINDOW + DAY)


def test_a_kill_while_keys_are_destroyed_does_not_prevent_the_next_start(
    config: KeyHolderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start ends the destruction: the secrets were gone, and the rest goes too."""
    clock = ManualClock(WINDOW)
    keyholder = KeyHolder(config, clock)
    first = epochs(config)
    clock.move_to(WINDOW + 2 * DAY)

    def killed(_path: Path) -> NoReturn:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(SystemExit):
            keyholder.upkeep.tick()
    keyholder.close()
    cut_short = [
        name for name in first if not (config.state / "epochs" / name / "secrets").exists()
    ]
    assert len(cut_short) == 1
    assert starts(config, clock.now())
    assert not epochs(config) & set(cut_short)
