"""Made-up households on the BDEW standard load profile H0 (extra ``gridveil[profiles]``).

VDEW/BDEW, "Repräsentative VDEW-Lastprofile" (1999): a quarter-hour profile of German households
with the dynamic correction over the year, as demandlib ships it. A household's yearly consumption
is lognormal, and each of its intervals is scattered lognormally about its share of the profile.
Seeded: the same seed gives the same readings whatever is asked for in whatever order.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.simulator.readings import ReadingBounds, Readings

_QUARTER_S = 900
_BERLIN = ZoneInfo("Europe/Berlin")
_HOUSEHOLD_STREAM = 1
_INTERVAL_STREAM = 2


@dataclass(frozen=True)
class StandardLoadSource:
    """Households that draw power as H0 says, each in its own way."""

    seed: int = 0
    median_kwh_a_year: float = 2900.0
    household_sigma: float = 0.45
    """Standard deviation of the logarithm of yearly consumption between households."""
    interval_sigma: float = 0.6
    """The same of one interval of one household."""
    skipped: int = 0

    def read(
        self, labels: Sequence[str | None], windows: Sequence[int], bounds: ReadingBounds
    ) -> Readings:
        """As :class:`gridveil.simulator.readings.ReadingSource` says; no reading is missing."""
        table = Readings.none(windows, len(labels))
        yearly = self._yearly_wh(len(labels))
        for at, start in enumerate(windows):
            share = _share(start, start + bounds.window_length)
            table.wh[at] = np.rint(yearly * share * self._scatter(start, len(labels)))
        if table.wh.max(initial=0) > bounds.most:
            raise MalformedInput(
                Reason.CONFIG_INVALID,
                f"made-up households exceed the city's bound of {bounds.most} Wh",
            )
        table.present[:] = True
        return table

    def _yearly_wh(self, meters: int) -> NDArray[np.float64]:
        source = np.random.default_rng([self.seed, _HOUSEHOLD_STREAM])
        mean = np.log(self.median_kwh_a_year * 1000)
        return source.lognormal(mean, self.household_sigma, meters)

    def _scatter(self, window_start: int, meters: int) -> NDArray[np.float64]:
        source = np.random.default_rng([self.seed, _INTERVAL_STREAM, window_start])
        # Of mean 1: the fleet's total keeps to the profile.
        return source.lognormal(-(self.interval_sigma**2) / 2, self.interval_sigma, meters)


def _share(start: int, end: int) -> float:
    """Part of a year's consumption that falls between two times."""
    total = 0.0
    at = start
    while at < end:
        until = min(end, (at // _QUARTER_S + 1) * _QUARTER_S)
        total += _quarter(at) * (until - at) / _QUARTER_S
        at = until
    return total


def _quarter(at: int) -> float:
    # The profile is in local time, and knows neither summer time nor its ends.
    local = datetime.fromtimestamp(at, UTC).astimezone(_BERLIN)
    day = local.timetuple().tm_yday - 1
    place = day * 96 + local.hour * 4 + local.minute // 15
    return float(_profile(local.year)[place])


@lru_cache(maxsize=4)
def _profile(year: int) -> NDArray[np.float64]:
    """Share of the year's consumption in each quarter of an hour."""
    try:
        from demandlib import bdew
    except ModuleNotFoundError as error:
        raise MalformedInput(
            Reason.CONFIG_INVALID,
            f"making up households needs {error.name}: install the extra with "
            "pip install 'gridveil[profiles]', or give a file of readings",
        ) from None
    # It turns all warnings of the process into errors and leaves them so.
    with warnings.catch_warnings():
        frame = bdew.ElecSlp(year).get_profiles("h0_dyn")
    values: NDArray[np.float64] = frame["h0_dyn"].to_numpy(dtype=np.float64)
    normalised: NDArray[np.float64] = values / values.sum()
    return normalised
