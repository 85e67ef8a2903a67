"""What a household checks: that a released total counts its own report.

    with Household.open("city/meter/profile.toml") as household:
        own = household.check(window_start, MeterKeys.load("meter.key"))
        print(own.standing)

Works whoever may see the entries of others: a meter's own entry is sealed to it, and found by a
tag that only the meter and the key-holder can compute. Whoever serves it learns that somebody
asked, and not which meter that is.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from gridveil.meter_identity import MeterKeys
from gridveil.operator import NotReleased, Operator, Outcome, ReleasedTotal
from gridveil.profile import Profile
from gridveil.protocol.city import CityParameters
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.own_entry import OwnEntryKey
from gridveil.protocol.release import Total
from gridveil.protocol.sealing import shared_key
from gridveil.protocol.windows import lane_of
from gridveil.verification import verify_own_entry

_WINDOWS_KEPT = 8


class Standing(StrEnum):
    """Where a meter's report of a settled window stands."""

    COUNTED = "COUNTED"
    """Proven: the signed total counts the report, which this meter signed."""
    LANE_LEFT_OUT = "LANE_LEFT_OUT"
    """Signed: the total leaves the meter's lane out, because somebody's report in it was wrong."""
    NOT_COUNTED = "NOT_COUNTED"
    """The totals service says that the total counts no report of this meter. That is its word: a
    receipt for the report proves that one was taken in."""
    NOT_RELEASED = "NOT_RELEASED"
    """The window was settled without a total; nobody was counted."""


@dataclass(frozen=True)
class OwnReport:
    """What became of one meter's report."""

    window_start: int
    meter_id: bytes
    standing: Standing
    total: Total | None
    """The signed total, if there is one."""
    index: int | None = None
    """The report's place among those counted, if it is one of them."""
    report_digest: bytes | None = None
    """The report that was counted: the digest that its receipt names."""


class Household:
    """Checks of own reports; a context manager."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._windows: OrderedDict[int, tuple[Outcome, CityParameters | None]] = OrderedDict()

    @classmethod
    def open(cls, profile: Profile | Path | str) -> Self:
        """With a meter's or gateway's profile. Connects at the first call."""
        return cls(Operator.open(profile))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._operator.close()

    def check(self, window_start: int, keys: MeterKeys) -> OwnReport:
        """Whether the total of a window counts the report of a meter.

        Raises:
            WrongState: NOT_RELEASED while the window is not settled.
            NotFound: own entries of the window are not kept any more.
            NotAuthentic: PROOF_INVALID, SIGNATURE_INVALID or KEY_NOT_PINNED: what was served is
                not what it should be.
            MalformedInput: the same, with COHORT_INVALID or DIGEST_MISMATCH.
        """
        outcome, parameters = self._window(window_start)
        if isinstance(outcome, NotReleased) or parameters is None:
            return OwnReport(window_start, keys.meter_id, Standing.NOT_RELEASED, None)
        total = outcome.total
        own = _own_key(parameters, keys, window_start)
        found = self._operator.own_entry(window_start, own.tag)
        if not found.sealed_entry:
            return OwnReport(window_start, keys.meter_id, _uncounted(total, keys), total)
        opened = own.open(found.sealed_entry, found.leaf_hash)
        claim = verify_own_entry(total, keys.member, opened, found.index, found.proof)
        return OwnReport(
            window_start, keys.meter_id, Standing.COUNTED, total, found.index, claim.digest()
        )

    def _window(self, window_start: int) -> tuple[Outcome, CityParameters | None]:
        if window_start not in self._windows:
            outcome, parameters = self._operator.get(window_start), None
            if isinstance(outcome, ReleasedTotal):
                parameters = self._operator.parameters(window_start)
                if parameters.digest != outcome.total.parameters_digest:
                    raise MalformedInput(
                        Reason.DIGEST_MISMATCH, "these are not the total's parameters"
                    )
            self._windows[window_start] = outcome, parameters
            if len(self._windows) > _WINDOWS_KEPT:
                self._windows.popitem(last=False)
        return self._windows[window_start]


def _own_key(parameters: CityParameters, keys: MeterKeys, window_start: int) -> OwnEntryKey:
    policy, epoch = parameters.policy, parameters.epoch
    sealing_key = shared_key(
        keys.sealing_secret, epoch.sealing_key, policy.city_id, epoch.epoch_id, keys.meter_id
    )
    return OwnEntryKey.derive(sealing_key, window_start)


def _uncounted(total: Total, keys: MeterKeys) -> Standing:
    lane = lane_of(total.epoch_id, total.window_start, keys.meter_id, total.lanes)
    return Standing.LANE_LEFT_OUT if lane in total.left_out else Standing.NOT_COUNTED
