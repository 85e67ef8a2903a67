"""What is known of each window: its total or why there is none, the feeder, and the services."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.reconcile import Settled, net, scaled, window_length
from gridveil.settlements import NotReleased, NotReleasedReason, Outcome, ReleasedTotal

MOST_WINDOWS = 1_000_000


@dataclass(frozen=True)
class Told:
    """What the services' metrics said of the time of a window; None: nothing."""

    refused_reports: float | None = None
    """Reports that the aggregators refused."""
    latency_s: float | None = None
    """Of calls of meters."""
    lane_reports: Mapping[str, float] = field(default_factory=dict)
    """Reports by lane."""


NOTHING_TOLD = Told()


@dataclass(frozen=True)
class Counted:
    """A released total."""

    sums: tuple[int, ...]
    """As released, a register each."""
    city_wh: int
    """Import less export, scaled to all enrolled meters."""
    count: int
    enrolled: int
    lanes: int
    left_out: tuple[int, ...]

    @property
    def coverage(self) -> float:
        """Meters in the total by meters enrolled in the lanes that opened, 0 to 1."""
        open_share = 1 - len(self.left_out) / self.lanes
        return min(1.0, self.count / (self.enrolled * open_share))


@dataclass(frozen=True)
class Observation:
    """One window. Neither ``counted`` nor ``refused``: it is not settled."""

    window_start: int
    length: int
    counted: Counted | None = None
    refused: NotReleasedReason | None = None
    feeder_wh: int | None = None
    told: Told = NOTHING_TOLD


def observations(
    settled: Sequence[Settled],
    feeder: Mapping[int, int] | None = None,
    told: Mapping[int, Told] | None = None,
) -> list[Observation]:
    """Every window from the first to the last of ``settled``, also those that are missing.

    Args:
        settled: outcomes of one city, each window at most once.
        feeder: Wh by window start.
        told: what services said, by window start.

    Raises:
        MalformedInput: MALFORMED_MESSAGE for a total of no lanes; CONFIG_INVALID for a city without
            ``import_wh`` in Wh or with windows of several lengths; WINDOW_MISALIGNED; RANGE_INVALID
            for more than 1,000,000 windows.
    """
    length = window_length(settled)
    outcomes = {outcome.window_start: outcome for outcome, _ in settled}
    if any(window % length for window in outcomes):
        raise MalformedInput(Reason.WINDOW_MISALIGNED, "a window is off the grid of its length")
    windows = range(min(outcomes, default=0), max(outcomes, default=-1) + 1, length)
    if len(windows) > MOST_WINDOWS:
        raise MalformedInput(Reason.RANGE_INVALID, "these are more than 1,000,000 windows")
    feeder, told = feeder or {}, told or {}
    return [
        observation(
            window,
            length,
            outcomes.get(window),
            feeder.get(window),
            told.get(window, NOTHING_TOLD),
        )
        for window in windows
    ]


def observation(
    window_start: int,
    length: int,
    outcome: Outcome | None,
    feeder_wh: int | None = None,
    told: Told = NOTHING_TOLD,
) -> Observation:
    """What is known of one window; without an outcome it is not settled.

    Raises:
        MalformedInput: as :func:`observations`.
    """
    return Observation(window_start, length, _counted(outcome), _refused(outcome), feeder_wh, told)


def _counted(outcome: object) -> Counted | None:
    if not isinstance(outcome, ReleasedTotal):
        return None
    total = outcome.total
    if len(total.left_out) >= total.lanes:
        raise MalformedInput(Reason.MALFORMED_MESSAGE, "a total is of no lane that opened")
    return Counted(
        tuple(register.sum for register in total.registers),
        scaled(net(outcome), outcome),
        total.count,
        total.enrolled,
        total.lanes,
        total.left_out,
    )


def _refused(outcome: object) -> NotReleasedReason | None:
    return outcome.reason if isinstance(outcome, NotReleased) else None
