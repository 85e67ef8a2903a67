"""The release log knows every roster version, as counts and a digest, and every policy."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from gridveil.clock import ManualClock
from gridveil.protocol.errors import GridveilError, Reason, Unavailable
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.keyholder.keyholder import KeyHolder
from tests.support.keyholders import logged, make_config, opened
from tests.support.reports import WINDOW, make_members

NOW = WINDOW + 100


@pytest.fixture
def config(tmp_path: Path) -> KeyHolderConfig:
    """A key-holder with a roster of three meters."""
    made = make_config(tmp_path / "city")
    with opened(made, WINDOW - 1) as keyholder:
        keyholder.roster.enrol([meter.member for meter in make_members(3)])
    return made


class Killed(BaseException):
    """Stands for SIGKILL: nothing handles it."""


def die() -> NoReturn:
    raise Killed


def test_every_roster_version_is_logged_and_so_is_the_policy(config: KeyHolderConfig) -> None:
    meters = make_members(5)
    with opened(config, NOW) as keyholder:
        keyholder.roster.enrol([meter.member for meter in meters])
        keyholder.roster.withdraw([meters[0].meter_id])
        keyholder.roster.withdraw([meters[0].meter_id])
    with opened(config, NOW):
        pass
    changes = logged(config, "roster_changed")
    assert [(c.version, c.count, c.enrolled, c.withdrawn) for c in changes] == [
        (1, 3, 3, 0),
        (2, 5, 2, 0),
        (3, 4, 0, 1),
    ]
    assert [stated.policy for stated in logged(config, "policy_stated")] == [config.policy.encode()]
    stricter = replace(config.policy, min_cohort=500)
    with opened(replace(config, policy=stricter), NOW):
        assert [stated.policy for stated in logged(config, "policy_stated")] == [
            config.policy.encode(),
            stricter.encode(),
        ]


def test_a_roster_version_that_a_crash_kept_from_the_log_is_in_it_after_the_start(
    config: KeyHolderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(config, NOW) as keyholder, monkeypatch.context() as patch:
        patch.setattr(keyholder.ledger, "roster_changed", lambda *_: die())
        with pytest.raises(Killed):
            keyholder.roster.withdraw([make_members(1)[0].meter_id])
    assert len(logged(config, "roster_changed")) == 1
    with opened(config, NOW):
        assert [change.version for change in logged(config, "roster_changed")] == [1, 2]


def test_a_roster_change_that_cannot_be_logged_is_no_answer(config: KeyHolderConfig) -> None:
    """The registrar asks again, and is told the version once the log has it."""
    leaving = [make_members(1)[0].meter_id]
    with opened(config, NOW) as keyholder:
        keyholder.ledger.fail()
        for _ in range(2):
            with pytest.raises(Unavailable):
                keyholder.roster.withdraw(leaving)
    with opened(config, NOW) as keyholder:
        assert keyholder.roster.withdraw(leaving).version == 2
        assert len(logged(config, "roster_changed")) == 2


def test_a_roster_older_than_the_log_is_refused(config: KeyHolderConfig, tmp_path: Path) -> None:
    database = config.state / "roster.db"
    shutil.copy(database, tmp_path / "older.db")
    with opened(config, NOW) as keyholder:
        keyholder.roster.withdraw([make_members(1)[0].meter_id])
    for path in database.parent.glob("roster.db*"):
        path.unlink()
    shutil.copy(tmp_path / "older.db", database)
    with pytest.raises(GridveilError) as refusal:
        KeyHolder(config, ManualClock(NOW))
    assert refusal.value.reason is Reason.PARTIAL_CORRUPT
