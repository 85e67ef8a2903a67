"""``watchdog.toml``: from when on something is worth a person's attention."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from gridveil.config import ConfigFile, load

Percent = Annotated[float, msgspec.Meta(gt=0, le=100)]
Deviations = Annotated[float, msgspec.Meta(gt=0, le=100)]
Number = Annotated[int, msgspec.Meta(ge=1, le=10_000)]


class Limits(ConfigFile, frozen=True, kw_only=True):
    """Limits of a city; the defaults are those that docs/watchfulness.md measures."""

    zone: str = "UTC"
    """Where days begin and end, by its IANA name."""
    coverage_drop_percent: Percent = 2.0
    """Least drop of coverage over two windows, in percent of the enrolled meters; over one window
    it is twice as much."""
    coverage_deviations: Deviations = 5.0
    lane_drop_percent: Percent = 25.0
    """Least share of a lane's reports that is missing."""
    lane_deviations: Deviations = 4.5
    step_percent: Percent = 16.0
    """By how much a step of demand must exceed every one of the week at that time (100 x log)."""
    step_deviations: Deviations = 6.0
    drift_days: Number = 14
    """Days that a city's losses are learned from."""
    drift_slack: Deviations = 0.5
    """Deviations of a day's losses that are nothing (delta of Page-Hinkley)."""
    drift_threshold: Deviations = 8.0
    """Deviations that must have gathered (lambda of Page-Hinkley)."""
    refused_windows: Number = 3
    """Windows without a total within a day."""
    refused_reports: Number = 20
    """Least reports refused in a window."""
    refused_deviations: Deviations = 6.0
    latency_factor: Annotated[float, msgspec.Meta(gt=1, le=1000)] = 2.0
    """By how much calls must be slower than usual."""
    latency_deviations: Deviations = 5.0
    frozen_windows: Annotated[int, msgspec.Meta(ge=2, le=10_000)] = 3
    """Windows with the very same sums."""

    @classmethod
    def load(cls, path: Path) -> Limits:
        """The limits in a file; CONFIG_INVALID names the key that is wrong."""
        return load(path, cls)
