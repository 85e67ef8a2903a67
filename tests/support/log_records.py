"""Logs that are lawful: an epoch, claimed windows, their outcomes."""

from __future__ import annotations

from nacl.signing import SigningKey

from gridveil.protocol.city import CityPolicy
from gridveil.protocol.release import RegisterTotal, Total, TotalNoise
from gridveil.protocol.v1.log_pb2 import (
    DestructionCause,
    EpochCreated,
    EpochDestroyed,
    KeyHolderUnlocked,
    LogRecord,
    PolicyStated,
    ReleaseIntent,
    RosterChanged,
    WindowRefused,
)
from tests.support.totals import OpenedWindow, expired, open_window, readings, released


def epoch_created(opened: OpenedWindow) -> LogRecord:
    epoch = opened.parameters.epoch
    return LogRecord(
        epoch_created=EpochCreated(
            epoch_id=epoch.epoch_id,
            parameters_digest=opened.parameters.digest,
            first_window=epoch.first_window,
            end_window=epoch.end_window,
        )
    )


def epoch_destroyed(opened: OpenedWindow) -> LogRecord:
    epoch = opened.parameters.epoch
    return LogRecord(
        epoch_destroyed=EpochDestroyed(
            epoch_id=epoch.epoch_id,
            cause=DestructionCause.DESTRUCTION_CAUSE_SETTLED,
            end_window=epoch.end_window,
        )
    )


def claimed(opened: OpenedWindow) -> LogRecord:
    return LogRecord(
        intent=ReleaseIntent(
            window_start=opened.total.window_start,
            release_digest=opened.total.release_digest,
            parameters_digest=opened.parameters.digest,
            roster_version=1,
        )
    )


def refused_claim(opened: OpenedWindow) -> LogRecord:
    return LogRecord(
        refused=WindowRefused(
            window_start=opened.total.window_start, release_digest=opened.total.release_digest
        )
    )


def policy_stated(policy: CityPolicy, refusals_per_day: int = 0) -> LogRecord:
    stated = PolicyStated(policy=policy.encode(), refusals_per_day=refusals_per_day)
    return LogRecord(policy_stated=stated)


def unlocked(locked_at: int) -> LogRecord:
    return LogRecord(keyholder_unlocked=KeyHolderUnlocked(locked_at_index=locked_at))


def lawful_log(policy: CityPolicy, key: SigningKey, window: int) -> list[LogRecord]:
    """One epoch: a released window, a refused one and an expired one; then it is destroyed."""
    first = open_window(policy, key, window, readings(100))
    second = open_window(policy, key, window + 900, readings(100, seed=1))
    return [
        policy_stated(policy),
        LogRecord(roster_changed=RosterChanged(version=1, count=100, enrolled=100)),
        epoch_created(first),
        claimed(first),
        released(first),
        claimed(second),
        refused_claim(second),
        expired(window + 1800),
        epoch_destroyed(first),
    ]


def bare_total(window: int, digest: bytes, added: TotalNoise | None = None) -> Total:
    """A total of a release with this digest, lawful by itself; nothing opens it."""
    return Total(
        city_id=bytes(16),
        epoch_id=bytes(16),
        parameters_digest=bytes(32),
        window_start=window,
        window_length=900,
        roster_version=1,
        enrolled=100,
        count=100,
        lanes=1,
        left_out=(),
        release_digest=digest,
        entries_root=bytes(32),
        registers=(RegisterTotal("import_wh", "Wh", 5),),
        blinding=bytes(32),
        added=added,
    )
