"""What a gateway keeps over a restart: the registers at the last boundary, and what is to be said.

One JSON file, mode 0600, replaced as a whole and synced once a window. **It holds registers in the
clear**, as the outbox holds readings: both belong on the household's own disk. Of the meter's
serial number it holds a keyed digest.

A window's values are in it before they are in the outbox. A crash between the two says them again,
the same, and the outbox knows them by that; a later reading never gets to say something else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gridveil.files import write_durably
from gridveil.meters.intervals import Cause, Point, Track
from gridveil.meters.registers import Reading
from gridveil.protocol.errors import IntegrityLost, MalformedInput, Reason, Unavailable

_FORMAT = 1


class _File(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    format: int
    meter_id: str
    meter: str
    at: int
    heard: float | None
    registers: dict[str, int]
    point_at: int | None
    point: dict[str, int] | None
    measured: bool
    horizon: int
    cause: Cause
    pending: list[tuple[int, dict[str, int]]]
    counted: tuple[str, int] | None = None


@dataclass(frozen=True)
class Kept:
    """A track, and the validated windows that are not known to be in the outbox."""

    track: Track | None = None
    pending: tuple[tuple[int, dict[str, int]], ...] = field(default=(), repr=False)
    counted: tuple[str, int] | None = None
    """The meter of the last authenticated message, and its invocation counter."""


@dataclass(frozen=True)
class StateFile:
    """The file of one meter."""

    path: Path
    meter_id: bytes

    def load(self) -> Kept:
        """What was kept; nothing if there is no file.

        Raises:
            IntegrityLost: PARTIAL_CORRUPT if the file is not what was written.
            MalformedInput: CONFIG_INVALID if it is another meter's.
            Unavailable: STORE_UNAVAILABLE if it cannot be read.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return Kept()
        except OSError:
            raise _unavailable() from None
        try:
            file = msgspec.json.decode(data, type=_File)
        except (msgspec.DecodeError, ValueError):
            raise _damaged() from None
        if file.format != _FORMAT:
            raise _damaged()
        if file.meter_id != self.meter_id.hex():
            raise MalformedInput(Reason.CONFIG_INVALID, f"{self.path.name} is another meter's")
        return Kept(_track(file), tuple(file.pending), file.counted)

    def save(self, kept: Kept) -> None:
        """Replace the file; on disk when this returns. Unavailable if the disk fails."""
        track = kept.track
        if track is None:
            return
        point = track.point
        file = _File(
            format=_FORMAT,
            meter_id=self.meter_id.hex(),
            meter=track.last.meter,
            at=track.last.at,
            heard=track.last.heard,
            registers=dict(track.last.registers),
            point_at=None if point is None else point.at,
            point=None if point is None else dict(point.registers),
            measured=point is not None and point.measured,
            horizon=track.horizon,
            cause=track.cause,
            pending=list(kept.pending),
            counted=kept.counted,
        )
        try:
            write_durably(self.path, msgspec.json.encode(file))
        except OSError:
            raise _unavailable() from None


def _track(file: _File) -> Track:
    point = None
    if file.point_at is not None and file.point is not None:
        if file.point.keys() != file.registers.keys():
            raise _damaged()
        point = Point(file.point_at, file.point, file.measured)
    last = Reading(file.meter, file.at, file.registers, file.heard)
    return Track(last, point, file.horizon, file.cause)


def _damaged() -> IntegrityLost:
    return IntegrityLost(Reason.PARTIAL_CORRUPT, "the kept registers are not what was written")


def _unavailable() -> Unavailable:
    return Unavailable(Reason.STORE_UNAVAILABLE, "the kept registers cannot be read or written")
