"""``control.toml``: what a city's controller does when. Read once, checked whole."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import msgspec

from gridveil.config import ConfigFile, load
from gridveil.protocol.errors import MalformedInput, Reason


class ControlRules(ConfigFile, frozen=True, kw_only=True):
    """The rules. Power is in W, averaged over a window; times are in seconds."""

    register: str = "import_wh"
    """A register in Wh: its sums become power."""
    window_length: int = 900
    capacity_w: int
    """What the grid carries."""
    levels_percent: tuple[int, int, int] = (85, 92, 100)
    """From which share of the capacity on level 1, 2 and 3 is signalled."""
    hysteresis_w: int
    """A level ends when demand is this far below the threshold that began it."""
    ramp_limit_w: int
    """A rise from one window to the next of at least this is level 1 or more."""
    hold_s: int = 1_800
    """A level does not fall sooner than this after the last change; it may rise at once."""
    stale_after_s: int = 1_800
    """A total is acted on until its window ended this long ago."""
    hold_safe_s: int = 3_600
    """How long the last signal is held after that; then it is neutral. At least ``hold_s``."""
    min_coverage_percent: int = 80
    """A total of a smaller share of the enrolled meters is treated as missing."""

    sites_w: dict[str, int] = msgspec.field(default_factory=dict)
    """Contracted power of the sites that are told a limit, by their OpenADR target."""
    sites_share_w: int = 0
    """What all sites together may draw at level 3."""

    def __post_init__(self) -> None:
        if self.window_length not in range(60, 86_401):
            _refuse("window_length", "is 60 to 86400 seconds")
        low, middle, high = self.levels_percent
        if not 0 < low < middle < high <= 1_000:
            _refuse("levels_percent", "are three rising numbers, 1 to 1000")
        if not 0 < self.capacity_w < 2**50:
            _refuse("capacity_w", "is 1 to 2^50 - 1")
        if not 0 <= self.hysteresis_w < self.threshold_w(1):
            _refuse("hysteresis_w", "is at least 0 and less than the threshold of level 1")
        if not 0 < self.ramp_limit_w < 2**50:
            _refuse("ramp_limit_w", "is 1 to 2^50 - 1")
        if not 0 <= self.hold_s <= self.hold_safe_s <= 86_400:
            _refuse("hold_s", "is at least 0, hold_safe_s at least hold_s and at most 86400")
        if not 0 < self.stale_after_s <= 86_400:
            _refuse("stale_after_s", "is 1 to 86400 seconds")
        if self.min_coverage_percent not in range(1, 101):
            _refuse("min_coverage_percent", "is 1 to 100")
        if not all(0 < len(name) <= 128 and 0 < w < 2**50 for name, w in self.sites_w.items()):
            _refuse("sites_w", "are names of 1 to 128 characters with 1 to 2^50 - 1 W")
        # Without a share every site would be told to draw nothing.
        least = 1 if self.sites_w else 0
        if not least <= self.sites_share_w <= self.capacity_w:
            _refuse("sites_share_w", "is at most capacity_w, and more than 0 if there are sites_w")

    def threshold_w(self, level: int) -> int:
        """From which demand on a level (1 to 3) is signalled."""
        return self.capacity_w * self.levels_percent[level - 1] // 100

    def covers(self, count: int, enrolled: int) -> bool:
        """Whether a total of so many meters is one to act on."""
        return count * 100 >= enrolled * self.min_coverage_percent

    @classmethod
    def load(cls, path: Path) -> ControlRules:
        """The rules in a TOML file; CONFIG_INVALID names what is wrong."""
        return load(path, cls)


def _refuse(key: str, what: str) -> NoReturn:
    raise MalformedInput(Reason.CONFIG_INVALID, f"{key} {what}", field=key)
