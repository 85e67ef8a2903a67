"""Days by local time: 92, 96 or 100 quarter-hours, where daylight saving begins and ends."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from gridveil.protocol.errors import MalformedInput, Reason


def zone_named(name: str) -> ZoneInfo:
    """A time zone by its IANA name, or CONFIG_INVALID if this machine knows none of that name."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise MalformedInput(
            Reason.CONFIG_INVALID, "this is no time zone that is known here"
        ) from None


def windows_of(day: date, zone: ZoneInfo, length: int) -> range:
    """Starts (Unix seconds) of the windows of ``length`` seconds from midnight to midnight."""
    return range(_midnight(day, zone), _midnight(day + timedelta(days=1), zone), length)


def day_of(window_start: int, zone: ZoneInfo) -> date:
    """The local day that a window begins in."""
    return datetime.fromtimestamp(window_start, zone).date()


def offset_at(window_start: int, zone: ZoneInfo) -> timedelta:
    """How far local time is ahead of UTC."""
    return datetime.fromtimestamp(window_start, zone).utcoffset() or timedelta()


def same_time_before(window_start: int, days: int, zone: ZoneInfo) -> int:
    """The window at the same local time some days before.

    An hour that a day has not is taken as the hour after it; one that it has twice as the one of
    the same order.
    """
    local = datetime.fromtimestamp(window_start, zone)
    # Arithmetic forgets which of two hours of the same name it was.
    before = (local - timedelta(days=days)).replace(fold=local.fold)
    return int(before.astimezone(UTC).timestamp())


def _midnight(day: date, zone: ZoneInfo) -> int:
    return int(datetime.combine(day, time(), zone).astimezone(UTC).timestamp())
