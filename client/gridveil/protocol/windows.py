"""Window and lane rules: pure functions of the parameters and a given time.

Times are Unix seconds UTC. A window is named by its start.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from gridveil.protocol.errors import MalformedInput, Reason, WrongState
from gridveil.protocol.layout import sha256, text
from gridveil.protocol.parameter_sets import ParameterSet

EXPIRY_S = 24 * 3600
"""A window not settled this long after its end is expired: logged, final."""

ROTATION_LEAD_S = 30
"""Which epoch a window belongs to is fixed so long before its reports are taken, at the latest."""

LANE_TARGET = 100
MOST_SMALL_LANES = 16
SCATTER_SIGMAS = 8
"""Room in a full lane, in standard deviations: meters fall into lanes by hash."""

_LANE_DOMAIN = text("gridveil/v1/lane")
_LANE = struct.Struct(f"<{len(_LANE_DOMAIN)}s16sQ16s")
_WINDOW_LIMIT = 2**53


@dataclass(frozen=True)
class WindowRules:
    """When reports of a window are taken. Seconds; all from the signed city parameters."""

    length: int
    grace: int
    early_leeway: int

    def start_at(self, now: float) -> int:
        """The window that ``now`` lies in."""
        return int(now // self.length) * self.length

    def end(self, window_start: int) -> int:
        """First second after the window."""
        return window_start + self.length

    def opens(self, window_start: int) -> int:
        """From when reports are taken."""
        return self.end(window_start) - self.early_leeway

    def fixed(self, window_start: int) -> int:
        """From when the window keeps its epoch, even if that epoch's keys are destroyed."""
        lead = min(ROTATION_LEAD_S, (self.length - self.early_leeway) // 2)
        return self.opens(window_start) - lead

    def closes(self, window_start: int) -> int:
        """From when reports are refused and the window may be sealed."""
        return self.end(window_start) + self.grace

    def expires(self, window_start: int) -> int:
        """From when an unsettled window is expired."""
        return self.end(window_start) + EXPIRY_S

    def check_aligned(self, window_start: int) -> None:
        """WINDOW_MISALIGNED unless this is a window start."""
        if not 0 < window_start < _WINDOW_LIMIT or window_start % self.length:
            raise MalformedInput(Reason.WINDOW_MISALIGNED, "not the start of a window")

    def check_begun(self, window_start: int, now: float) -> None:
        """WINDOW_TOO_EARLY before reports are taken."""
        if now < self.opens(window_start):
            raise WrongState(
                Reason.WINDOW_TOO_EARLY,
                "the window is not open yet",
                retry_after_s=self.opens(window_start) - now,
                opens=str(self.opens(window_start)),
            )

    def check_open(self, window_start: int, now: float) -> None:
        """WINDOW_TOO_EARLY or WINDOW_CLOSED unless reports are taken at ``now``."""
        self.check_begun(window_start, now)
        if now >= self.closes(window_start):
            raise WrongState(Reason.WINDOW_CLOSED, "the window is closed")

    def spread_s(self) -> float:
        """Clients spread their first attempts over this many seconds after the window's end."""
        return self.grace * 2 / 3


def lane_count(enrolled: int, parameters: ParameterSet, slots: int) -> int:
    """L: lanes of a window with ``enrolled`` meters on its roster.

    About 100 meters a lane up to 16 lanes, then as many as the set's bound asks for, with room
    for the scatter of hashing: 15/16 of 16,384, whose square root is 128.
    """
    bound = parameters.meters_per_lane(slots)
    full = bound - SCATTER_SIGMAS * math.isqrt(bound)
    small = min(MOST_SMALL_LANES, _rounded_up(enrolled, LANE_TARGET))
    return max(1, small, _rounded_up(enrolled, full))


def _rounded_up(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def lane_of(epoch_id: bytes, window_start: int, meter_id: bytes, lanes: int) -> int:
    """The lane of a meter in a window: nobody chooses it."""
    digest = sha256(_LANE.pack(_LANE_DOMAIN, epoch_id, window_start, meter_id))
    return int.from_bytes(digest[:8], "little") % lanes
