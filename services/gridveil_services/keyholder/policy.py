"""The release policy: pure functions of what the key-holder knows by itself.

Nothing here trusts the caller: the window's state comes from the release log, the time from the
key-holder's clock, the roster from its store, the parameters from its own signed epochs. What a
header claims is only ever compared with these; its count is proven afterwards by the entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from gridveil.protocol.city import PPM, CityParameters, CityPolicy, FailingLanes
from gridveil.protocol.errors import (
    Conflict,
    Exhausted,
    GridveilError,
    MalformedInput,
    Reason,
    Unavailable,
    WrongState,
)
from gridveil.protocol.noise import NoisePolicy
from gridveil.protocol.release import ReleaseHeader
from gridveil.protocol.roster import RosterVersion
from gridveil.protocol.windows import WindowRules, lane_count

RETRY_S = 2.0
"""After this many seconds a release that was in another's way may be tried again."""


class Status(Enum):
    """How far a window is."""

    OPEN = auto()
    """Nothing was decrypted; no release has claimed it."""
    PENDING = auto()
    """One release has claimed it for ever; its outcome is not durable yet."""
    RELEASED = auto()
    REFUSED = auto()
    OVER_BUDGET = auto()
    """Refused unopened, for the privacy budget of its day had no room for it."""
    EXPIRED = auto()


FINAL = frozenset({Status.RELEASED, Status.REFUSED, Status.OVER_BUDGET, Status.EXPIRED})


@dataclass(frozen=True)
class WindowState:
    """What the release log says of a window."""

    status: Status
    release_digest: bytes = b""
    """Of the release that claimed it."""


UNCLAIMED = WindowState(Status.OPEN)


@dataclass(frozen=True)
class Facts:
    """All that a decision depends on beside the header."""

    now: float
    """The key-holder's clock, Unix seconds."""
    state: WindowState
    parameters: CityParameters | None
    """Those the header names, if they are an epoch's of this key-holder."""
    roster: RosterVersion | None
    """In force for the window."""
    policy: CityPolicy
    """The key-holder's own configuration of today."""
    spent: bool = False
    """Whether the keys of the window's epoch must not decrypt any more, or are gone for that."""
    locked: bool = False
    """Whether too many windows were refused, and nobody has unlocked the key-holder since."""


def is_settled_by(state: WindowState, release_digest: bytes) -> bool:
    """Whether this very release was released before; False if the window is still open.

    Raises:
        Conflict: WINDOW_PINNED if another release has claimed the window.
        WrongState: REFUSED or WINDOW_EXPIRED.
        Exhausted: BUDGET_EXHAUSTED.
        Unavailable: KEYHOLDER_UNAVAILABLE while the outcome is not durable.
    """
    if state.status is Status.OPEN:
        return False
    if state.status is Status.EXPIRED:
        raise expired()
    if state.release_digest != release_digest:
        raise Conflict(Reason.WINDOW_PINNED, "another release has claimed this window")
    if state.status in {Status.REFUSED, Status.OVER_BUDGET}:
        raise refusal(state)
    if state.status is Status.PENDING:
        raise busy()
    return True


def check_release(header: ReleaseHeader, facts: Facts) -> None:
    """Raise unless a release with this header may be taken in, or refused if its epoch is spent.

    Raises:
        MalformedInput: WINDOW_MISALIGNED or COHORT_INVALID.
        WrongState: WINDOW_EXPIRED, KEY_EPOCH, WINDOW_OPEN (with ``closes``, Unix seconds),
            ROSTER_VERSION or COHORT_TOO_SMALL.
        Conflict: WINDOW_PINNED if anything has claimed the window.
        Unavailable: KEYHOLDER_LOCKED, whatever else is wrong with a window that may be claimed.
    """
    rules = facts.policy.rules
    rules.check_aligned(header.window_start)
    if facts.state != UNCLAIMED:
        raise _settled()
    if facts.now >= rules.expires(header.window_start):
        raise expired()
    if facts.locked:
        raise locked()
    # The signed policy of a spent epoch may be gone with its keys.
    signed = facts.policy
    if not facts.spent:
        signed = _check_epoch(header.window_start, facts.parameters).policy
    roster = _check_roster(header.roster_version, facts.roster)
    _check_sealed(header, roster, signed.rules, facts.now)
    if not facts.spent:
        _check_cohort(header, roster, signed, facts.policy)


def check_precheck(window_start: int, roster_version: int, facts: Facts) -> None:
    """Raise unless entries of a window may be checked ahead of its release.

    Raises:
        MalformedInput: WINDOW_MISALIGNED.
        WrongState: WINDOW_TOO_EARLY while no reports are taken, WINDOW_EXPIRED, KEY_EPOCH or
            ROSTER_VERSION.
        Conflict: WINDOW_PINNED if anything has claimed the window.
        Unavailable: KEYHOLDER_LOCKED
    """
    rules = facts.policy.rules
    rules.check_aligned(window_start)
    if facts.state != UNCLAIMED:
        raise _settled()
    if facts.locked:
        raise locked()
    if facts.now >= rules.expires(window_start):
        raise expired()
    signed = _check_epoch(window_start, facts.parameters).policy
    _check_roster(roster_version, facts.roster)
    signed.rules.check_begun(window_start, facts.now)


# Of the policy that meters were shown and today's the stricter one holds, clause by clause.


def is_cohort(count: int, enrolled: int, signed: CityPolicy, own: CityPolicy) -> bool:
    """Whether so many distinct meters are enough for a total, of so many on the roster."""
    cohort = max(signed.min_cohort, own.min_cohort)
    coverage_ppm = max(signed.min_coverage_ppm, own.min_coverage_ppm)
    return count >= cohort and count * PPM >= coverage_ppm * enrolled


def is_all_or_nothing(signed: CityPolicy, own: CityPolicy) -> bool:
    """Whether one lane that does not open refuses its window."""
    return FailingLanes.REFUSE_WINDOW in {signed.failing_lanes, own.failing_lanes}


def failure_budget(signed: CityPolicy, own: CityPolicy) -> int:
    """Lanes that may be decrypted with an epoch's keys and not open."""
    return min(signed.failure_budget, own.failure_budget)


def noise_policy(signed: CityPolicy, own: CityPolicy) -> NoisePolicy | None:
    """The noise of a total, and the budget of its day.

    Whether there is any, and of which kind, is what meters and verifiers were shown; how much, and
    how often, the stricter of both.
    """
    return signed.noise.stricter(own.noise) if signed.noise else None


def refusal(state: WindowState) -> GridveilError:
    """What is said of a window that was refused.

    REFUSED in one text and shape for every cause that has to do with what was opened;
    BUDGET_EXHAUSTED for the one that has not.
    """
    if state.status is Status.OVER_BUDGET:
        return Exhausted(
            Reason.BUDGET_EXHAUSTED,
            "the privacy budget of the window's day is spent; the window stays without a total",
        )
    return WrongState(Reason.REFUSED, "the release was refused; the window stays without a total")


def locked() -> Unavailable:
    """KEYHOLDER_LOCKED, without a time to come back: only somebody unlocks it."""
    return Unavailable(
        Reason.KEYHOLDER_LOCKED, "too many windows were refused: nothing is released until unlocked"
    )


def busy() -> Unavailable:
    """KEYHOLDER_UNAVAILABLE for now."""
    return Unavailable(
        Reason.KEYHOLDER_UNAVAILABLE, "the window is being worked on", retry_after_s=RETRY_S
    )


def wrong_epoch() -> WrongState:
    """KEY_EPOCH."""
    return WrongState(Reason.KEY_EPOCH, "the parameters are not those of the window's epoch")


def _check_epoch(window_start: int, parameters: CityParameters | None) -> CityParameters:
    if parameters is None or not parameters.epoch.serves(window_start):
        raise wrong_epoch()
    return parameters


def _check_roster(roster_version: int, roster: RosterVersion | None) -> RosterVersion:
    if roster is None or roster.version != roster_version:
        raise WrongState(Reason.ROSTER_VERSION, "the window has another roster version")
    return roster


def _check_sealed(
    header: ReleaseHeader, roster: RosterVersion, rules: WindowRules, now: float
) -> None:
    everybody = header.count == roster.count and now >= rules.end(header.window_start)
    closes = rules.closes(header.window_start)
    if not everybody and now < closes:
        raise WrongState(
            Reason.WINDOW_OPEN,
            "meters may still report this window",
            retry_after_s=closes - now,
            closes=str(closes),
        )


def _check_cohort(
    header: ReleaseHeader, roster: RosterVersion, signed: CityPolicy, own: CityPolicy
) -> None:
    lanes = lane_count(roster.count, signed.crypto, signed.layout.slots)
    if header.lanes != lanes or header.count > roster.count:
        raise MalformedInput(Reason.COHORT_INVALID, "the cohort does not fit the roster")
    if not is_cohort(header.count, roster.count, signed, own):
        raise WrongState(Reason.COHORT_TOO_SMALL, "too few meters reported for a release")


def _settled() -> Conflict:
    return Conflict(Reason.WINDOW_PINNED, "the window is settled")


def expired() -> WrongState:
    """WINDOW_EXPIRED."""
    return WrongState(Reason.WINDOW_EXPIRED, "the window was not settled within its time")
