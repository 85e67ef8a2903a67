"""Epochs that end before their time: destroyed, logged and succeeded, whatever cuts that short."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import pytest

from gridveil.clock import ManualClock
from gridveil.protocol.city import CityParameters
from gridveil.protocol.errors import GridveilError, Reason, Unavailable
from gridveil.protocol.v1.log_pb2 import DestructionCause
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.keyholder.epoch_keys import EpochKeys, OpeningFailed
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.keyholder.policy import Status
from tests.support.disk import DurableDisk
from tests.support.keyholders import logged, make_config, opened
from tests.support.reports import WINDOW, make_members

pytestmark = pytest.mark.long

LENGTH = 900
BUDGET = 5
SPENT = DestructionCause.DESTRUCTION_CAUSE_BUDGET_SPENT
SETTLED = DestructionCause.DESTRUCTION_CAUSE_SETTLED
AFTER_A_RELEASE = WINDOW + LENGTH + 300 + 1
"""WINDOW was released, and the reports of the next window are far away."""
NEXT = WINDOW + LENGTH
DURABLE_STEPS = ("fsync", "rename", "unlink", "rmdir", "mkdir", "pwrite")


@pytest.fixture
def config(tmp_path: Path) -> KeyHolderConfig:
    """A key-holder with a roster in force for WINDOW."""
    made = make_config(tmp_path / "city")
    keyholder = KeyHolder(made, ManualClock(WINDOW - 1))
    keyholder.roster.enrol([meter.member for meter in make_members(3)])
    keyholder.close()
    return made


def parameters_of(keyholder: KeyHolder, window: int) -> CityParameters:
    signed = keyholder.ring.for_window(window)
    assert signed is not None
    return signed.parameters


def keys_of(keyholder: KeyHolder, window: int) -> EpochKeys:
    keys = keyholder.ring.by_digest(parameters_of(keyholder, window).digest)
    assert keys is not None
    return keys


def secrets_of(config: KeyHolderConfig, epoch_id: bytes) -> Path:
    return config.state / "epochs" / epoch_id.hex()


def retire(keyholder: KeyHolder, epoch_id: bytes) -> None:
    keyholder.ring.retire(epoch_id, SPENT, keyholder.clock.now())


def spend(keyholder: KeyHolder, failures: int = BUDGET) -> CityParameters:
    """Have WINDOW refused with so many lanes that were decrypted and did not open."""
    parameters = parameters_of(keyholder, WINDOW)
    keyholder.ledger.claim(WINDOW, bytes(32), parameters.digest, 1)
    keyholder.ledger.refused(WINDOW, bytes(32), failures)
    return parameters


def assert_succeeded(
    keyholder: KeyHolder, config: KeyHolderConfig, old: CityParameters, border: int = NEXT
) -> None:
    """The old epoch's secrets are gone, and one successor serves from the border on."""
    epoch_id = old.epoch.epoch_id
    assert keyholder.ring.by_digest(old.digest) is None
    assert not secrets_of(config, epoch_id).exists()
    assert [(gone.cause, gone.end_window) for gone in logged(config, "epoch_destroyed")] == [
        (SPENT, border)
    ]
    assert keyholder.ring.for_window(border - LENGTH) is None
    new = parameters_of(keyholder, border).epoch
    assert (new.first_window, new.end_window) == (border, old.epoch.end_window)
    assert new.epoch_id != epoch_id
    tomorrow = parameters_of(keyholder, old.epoch.end_window).epoch
    assert tomorrow.first_window == old.epoch.end_window
    assert len(list((config.state / "epochs").iterdir())) == 2


def test_a_retired_epoch_is_destroyed_and_the_next_window_has_keys_at_once(
    config: KeyHolderConfig,
) -> None:
    with opened(config, AFTER_A_RELEASE) as keyholder:
        old = parameters_of(keyholder, WINDOW)
        retire(keyholder, old.epoch.epoch_id)
        assert_succeeded(keyholder, config, old)
        retire(keyholder, old.epoch.epoch_id)
        assert_succeeded(keyholder, config, old)
    with opened(config, AFTER_A_RELEASE) as keyholder:
        assert_succeeded(keyholder, config, old)


def test_whoever_still_holds_the_keys_opens_nothing(config: KeyHolderConfig) -> None:
    """As a release does that was taken in while another one spent the budget."""
    with opened(config, AFTER_A_RELEASE) as keyholder:
        keys = keys_of(keyholder, WINDOW)
        member = make_members(1)[0].member
        keys.shared_key(0, member)
        retire(keyholder, keys.parameters.epoch.epoch_id)
        with pytest.raises(OpeningFailed):
            keys.shared_key(0, member)
        with pytest.raises(OpeningFailed):
            keys.slot_sums(WINDOW, None)  # type: ignore[arg-type]


def test_windows_whose_reporting_is_near_are_lost_and_logged_as_expired(
    config: KeyHolderConfig,
) -> None:
    """The day's earlier ones too; the successor begins with the first that is not."""
    late = NEXT + LENGTH - 61
    with opened(config, late) as keyholder:
        old = parameters_of(keyholder, NEXT)
        retire(keyholder, old.epoch.epoch_id)
        assert_succeeded(keyholder, config, old, border=NEXT + LENGTH)
        keyholder.upkeep.tick()
        states = [keyholder.ledger.state(w).status for w in (WINDOW, NEXT, NEXT + LENGTH)]
        assert states == [Status.EXPIRED, Status.EXPIRED, Status.OPEN]
        # Neither lost windows nor the successor get keys once more.
        keyholder.ring.ensure(late)
        assert_succeeded(keyholder, config, old, border=NEXT + LENGTH)


def test_while_the_current_window_is_without_keys_those_of_the_next_are_told(
    config: KeyHolderConfig,
) -> None:
    from gridveil.protocol.v1.aggregator_pb2 import GetCityParametersRequest
    from gridveil_services.keyholder.service import KeyHolderService

    with opened(config, NEXT + LENGTH - 61) as keyholder:
        retire(keyholder, parameters_of(keyholder, NEXT).epoch.epoch_id)
        service: Any = KeyHolderService(keyholder)
        told = service.get_city_parameters(GetCityParametersRequest(), None)
        assert told.parameters == parameters_of(keyholder, NEXT + LENGTH).encode()
        with pytest.raises(GridveilError) as refusal:
            service.get_city_parameters(GetCityParametersRequest(window_start=NEXT), None)
        assert refusal.value.reason is Reason.KEY_EPOCH


def test_an_epoch_that_has_not_begun_is_succeeded_in_all_its_windows(
    config: KeyHolderConfig,
) -> None:
    with opened(config, AFTER_A_RELEASE) as keyholder:
        today = parameters_of(keyholder, WINDOW)
        tomorrow = parameters_of(keyholder, today.epoch.end_window)
        retire(keyholder, tomorrow.epoch.epoch_id)
        new = parameters_of(keyholder, today.epoch.end_window).epoch
        assert new.epoch_id != tomorrow.epoch.epoch_id
        assert (new.first_window, new.end_window) == (
            tomorrow.epoch.first_window,
            tomorrow.epoch.end_window,
        )
        assert parameters_of(keyholder, WINDOW) == today


def test_successors_may_be_retired_as_well(config: KeyHolderConfig) -> None:
    clock = ManualClock(AFTER_A_RELEASE)
    keyholder = KeyHolder(config, clock)
    window = NEXT
    for _ in range(3):
        retire(keyholder, parameters_of(keyholder, window).epoch.epoch_id)
        assert parameters_of(keyholder, window).epoch.first_window == window
        clock.move_to(clock.now() + LENGTH)
        window += LENGTH
    keyholder.close()
    with opened(config, clock.now()) as keyholder:
        assert parameters_of(keyholder, window).epoch.first_window == window - LENGTH


@pytest.mark.parametrize("failures", [BUDGET - 1, BUDGET, BUDGET + 2])
def test_after_a_restart_a_spent_epoch_is_destroyed_before_anything_is_decrypted(
    config: KeyHolderConfig, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """A crash came between the outcome that spent the budget and the destruction."""
    with opened(config, AFTER_A_RELEASE) as keyholder:
        old = spend(keyholder, failures)
    settled: list[bool] = []
    settle = KeyHolder.__init__.__globals__["Releases"].settle_pending

    def observed(releases: Any) -> None:
        settled.append(secrets_of(config, old.epoch.epoch_id).exists())
        settle(releases)

    monkeypatch.setattr(KeyHolder.__init__.__globals__["Releases"], "settle_pending", observed)
    with opened(config, AFTER_A_RELEASE) as keyholder:
        spent = failures >= BUDGET
        assert settled == [not spent]
        if spent:
            assert_succeeded(keyholder, config, old)
        else:
            assert parameters_of(keyholder, NEXT) == old


def test_a_stricter_budget_of_today_retires_an_epoch_too(config: KeyHolderConfig) -> None:
    with opened(config, AFTER_A_RELEASE) as keyholder:
        old = spend(keyholder, 2)
    stricter = replace(config, policy=replace(config.policy, failure_budget=2))
    with opened(stricter, AFTER_A_RELEASE) as keyholder:
        assert_succeeded(keyholder, config, old)


def test_the_end_of_an_epochs_last_window_is_logged(config: KeyHolderConfig) -> None:
    with opened(config, AFTER_A_RELEASE) as keyholder:
        old = parameters_of(keyholder, WINDOW).epoch
    last = old.end_window - LENGTH
    with opened(config, config.policy.rules.expires(last)):
        gone = logged(config, "epoch_destroyed")
        assert [(g.epoch_id, g.cause, g.end_window) for g in gone] == [
            (old.epoch_id, SETTLED, old.end_window)
        ]
        assert not secrets_of(config, old.epoch_id).exists()


class Killed(BaseException):
    """Stands for SIGKILL: nothing handles it, and what is on disk stays as it is."""


def dying(
    monkeypatch: pytest.MonkeyPatch,
    nth: int,
    die: Callable[[], NoReturn],
    disk: DurableDisk | None = None,
) -> list[str]:
    """Die before the nth durable step, 0 is the first; the steps that were made are listed.

    ``disk`` is told what becomes durable.
    """
    made: list[str] = []

    def before(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def step(*arguments: Any, **keywords: Any) -> Any:
            if len(made) == nth:
                die()
            made.append(name)
            if disk is not None and name in {"rename", "unlink", "rmdir"}:
                at = keywords.get("dir_fd")
                folder = Path() if at is None else Path(f"/proc/self/fd/{at}")
                disk.freeing(folder / arguments[1 if name == "rename" else 0])
            result = real(*arguments, **keywords)
            if disk is not None and name == "fsync":
                disk.synced(arguments[0])
            return result

        return step

    for name in DURABLE_STEPS:
        monkeypatch.setattr(os, name, before(name))
    return made


def killed() -> NoReturn:
    raise Killed


def moved(config: KeyHolderConfig, folder: Path) -> KeyHolderConfig:
    """The configuration for the same city in another folder."""
    return replace(
        config,
        state=folder / "state",
        published=folder / "published",
        key_encrypting_key_file=folder / "kek",
    )


def copy(config: KeyHolderConfig, folder: Path) -> KeyHolderConfig:
    shutil.copytree(config.state.parent, folder)
    return moved(config, folder)


def lose_power(disk: DurableDisk, config: KeyHolderConfig, chance: Random | None) -> None:
    """Leave in the folder what a power cut may leave."""
    folder = config.state.parent
    remains = folder.with_name("remains")
    disk.materialise(remains, chance)
    shutil.rmtree(folder)
    remains.rename(folder)


LOSSES: dict[str, Callable[[DurableDisk, KeyHolderConfig, int], None]] = {
    "kill": lambda disk, config, nth: None,
    "cut": lambda disk, config, nth: lose_power(disk, config, None),
    "mixed": lambda disk, config, nth: lose_power(disk, config, Random(nth)),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_kill_at_any_step_of_a_retirement_is_made_good_by_the_next_start(
    config: KeyHolderConfig, tmp_path: Path, loss: str
) -> None:
    """Whatever was written and not synced is there, is gone, or is there in parts."""
    with opened(config, AFTER_A_RELEASE) as keyholder:
        old = spend(keyholder)
    ended, nth = False, 0
    while not ended:
        city = copy(config, tmp_path / f"killed-{nth}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gridveil_services.keyholder.epoch_keys.EpochRing.retire_spent", noop)
            keyholder = KeyHolder(city, ManualClock(AFTER_A_RELEASE))
        disk = DurableDisk(city.state.parent)
        try:
            with pytest.MonkeyPatch.context() as patch:
                steps = dying(patch, nth, killed, disk)
                retire(keyholder, old.epoch.epoch_id)
                ended = True
        except Killed:
            pass
        finally:
            keyholder.close()
        LOSSES[loss](disk, city, nth)
        with opened(city, AFTER_A_RELEASE) as keyholder:
            assert_succeeded(keyholder, city, old)
        shutil.rmtree(city.state.parent)
        nth += 1
    assert len(steps) > 15


def noop(*_arguments: Any) -> None:
    return None


def test_a_kill_at_any_step_of_the_start_that_makes_good_is_made_good_too(
    config: KeyHolderConfig, tmp_path: Path
) -> None:
    with opened(config, AFTER_A_RELEASE) as keyholder:
        old = spend(keyholder)
    ended, nth = False, 0
    while not ended:
        city = copy(config, tmp_path / f"killed-{nth}")
        try:
            with pytest.MonkeyPatch.context() as patch:
                dying(patch, nth, killed)
                KeyHolder(city, ManualClock(AFTER_A_RELEASE)).close()
                ended = True
        except Killed:
            pass
        with opened(city, AFTER_A_RELEASE) as keyholder:
            assert_succeeded(keyholder, city, old)
        shutil.rmtree(city.state.parent)
        nth += 3
    assert nth > 15


_RETIRE = """
import os, pickle, signal, sys
import pytest
from gridveil.clock import ManualClock
from gridveil_services.keyholder.keyholder import KeyHolder
from tests.integration.test_epoch_retirement import AFTER_A_RELEASE, NEXT, dying, retire
config = pickle.loads(open(sys.argv[1], "rb").read())
keyholder = KeyHolder(config, ManualClock(AFTER_A_RELEASE))
epoch = keyholder.ring.for_window(NEXT).parameters.epoch.epoch_id
dying(pytest.MonkeyPatch(), int(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL))
retire(keyholder, epoch)
"""


@pytest.mark.parametrize("nth", [0, 4, 8, 12])
def test_a_killed_process_leaves_an_epoch_whole_or_gone(
    config: KeyHolderConfig, tmp_path: Path, nth: int
) -> None:
    with opened(config, AFTER_A_RELEASE) as keyholder:
        old = parameters_of(keyholder, WINDOW)
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    process = subprocess.run(
        [sys.executable, "-c", _RETIRE, str(tmp_path / "config"), str(nth)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    with opened(config, AFTER_A_RELEASE) as keyholder:
        if logged(config, "epoch_destroyed"):
            assert_succeeded(keyholder, config, old)
        else:
            assert nth < 8
            assert parameters_of(keyholder, NEXT) == old


def test_a_disk_that_cannot_delete_is_tried_again_while_nothing_opens(
    config: KeyHolderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_path: Any, *_: Any, **__: Any) -> NoReturn:
        raise OSError("input/output error")

    with opened(config, AFTER_A_RELEASE) as keyholder:
        old = parameters_of(keyholder, WINDOW)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", fails)
            retire(keyholder, old.epoch.epoch_id)
            keyholder.upkeep.tick()
        assert keyholder.ring.by_digest(old.digest) is None
        assert secrets_of(config, old.epoch.epoch_id).exists()
        keyholder.upkeep.tick()
        assert_succeeded(keyholder, config, old)


def test_a_log_that_cannot_be_written_stops_everything_and_the_restart_retires(
    config: KeyHolderConfig,
) -> None:
    with opened(config, AFTER_A_RELEASE) as keyholder:
        old = spend(keyholder)
        keys = keys_of(keyholder, WINDOW)
        keyholder.ledger.fail()
        with pytest.raises(Unavailable):
            retire(keyholder, old.epoch.epoch_id)
        with pytest.raises(OpeningFailed):
            keys.shared_key(0, make_members(1)[0].member)
        assert secrets_of(config, old.epoch.epoch_id).exists()
    with opened(config, AFTER_A_RELEASE) as keyholder:
        assert_succeeded(keyholder, config, old)


def test_keys_that_the_log_calls_destroyed_are_so_after_a_backup_was_restored(
    config: KeyHolderConfig, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    with opened(config, AFTER_A_RELEASE) as keyholder:
        old = parameters_of(keyholder, WINDOW)
        folder = secrets_of(config, old.epoch.epoch_id)
        shutil.copytree(folder, backup)
        retire(keyholder, old.epoch.epoch_id)
    shutil.copytree(backup, folder)
    with opened(config, AFTER_A_RELEASE) as keyholder:
        assert_succeeded(keyholder, config, old)
