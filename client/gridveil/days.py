"""Days by local time: 92, 96 or 100 quarter-hours, where daylight saving begins and ends."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gridveil.protocol.errors import MalformedInput, Reason


def time_zone(name: str) -> tzinfo:
    """The zone of a name in the IANA time zone database, or CONFIG_INVALID."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise MalformedInput(Reason.CONFIG_INVALID, "there is no time zone of this name") from None


def windows_of(day: date, zone: tzinfo, length: int) -> range:
    """Starts (Unix seconds) of the windows of ``length`` seconds that begin in a local day.

    Windows are aligned to UTC: those of an hour do not begin at midnight where the zone's offset
    is not of whole hours.
    """
    begins, ends = (midnight(day + timedelta(days=days), zone) for days in (0, 1))
    return range(-(-begins // length) * length, -(-ends // length) * length, length)


def day_of(window_start: int, zone: tzinfo) -> date:
    """The local day that a window begins in."""
    return datetime.fromtimestamp(window_start, zone).date()


def offset_at(window_start: int, zone: tzinfo) -> timedelta:
    """How far local time is ahead of UTC."""
    return datetime.fromtimestamp(window_start, zone).utcoffset() or timedelta()


def same_time_before(window_start: int, days: int, zone: tzinfo) -> int:
    """The window at the same local time some days before.

    An hour that a day has not is taken as the hour after it; one that it has twice as the one of
    the same order.
    """
    local = datetime.fromtimestamp(window_start, zone)
    # Arithmetic forgets which of two hours of the same name it was.
    before = (local - timedelta(days=days)).replace(fold=local.fold)
    return int(before.astimezone(UTC).timestamp())


def midnight(day: date, zone: tzinfo) -> int:
    """When a local day begins, Unix seconds."""
    return int(datetime.combine(day, time(), zone).astimezone(UTC).timestamp())
