"""What ``gridveil totals list --json`` or ``watch --json`` printed, read strictly.

What counts is the signed total in each row, not the figures beside it; a row whose figures say
otherwise is refused. Rows without a total carry no signature, nor do the deviations of noise: both
are believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from gridveil.profile import Profile
from gridveil.protocol.errors import MalformedInput, NotAuthentic, Reason
from gridveil.protocol.release import Total, open_total
from gridveil.settlements import NotReleased, NotReleasedReason, Outcome, ReleasedTotal

MOST_BYTES = 128 * 2**20
"""Some two years of quarter-hours."""


WindowStart = Annotated[int, msgspec.Meta(ge=0, le=2**37)]
"""Unix seconds that a calendar has."""


class RegisterRow(msgspec.Struct, frozen=True):
    """A register's sum, as shown beside the signed total."""

    name: str
    unit: str
    sum: int
    standard_deviation: Annotated[float, msgspec.Meta(ge=0, le=2**64)] | None = None


class ReleasedRow(msgspec.Struct, frozen=True, tag_field="status", tag="released"):
    """A window with its total; keys that nothing here needs are passed over."""

    window_start: WindowStart
    registers: list[RegisterRow]
    signed_total: str
    signature: str


class NotReleasedRow(msgspec.Struct, frozen=True, tag_field="status", tag="not_released"):
    """A window that has no total."""

    window_start: WindowStart
    reason: NotReleasedReason


class Settled(NamedTuple):
    """A settled window, and the standard deviation of the noise in each of its sums.

    Empty if there is no noise, or if nothing says how much.
    """

    outcome: Outcome
    deviations: Mapping[str, float]


Row = Total | NotReleased
_Encoded = ReleasedRow | NotReleasedRow


def read_totals(path: Path, profile: Profile | None) -> list[Row]:
    """The totals and gaps of a file, by window; as :func:`read_settled`."""
    outcomes = (settled.outcome for settled in read_settled(path, profile))
    return [found.total if isinstance(found, ReleasedTotal) else found for found in outcomes]


def read_settled(path: Path, profile: Profile | None) -> list[Settled]:
    """The rows of a file, by window.

    Args:
        path: a JSON array of rows, or a row a line.
        profile: whose pinned key-holder must have signed every total; None: not checked.

    Raises:
        MalformedInput: MALFORMED_MESSAGE, MESSAGE_TOO_LARGE; DIGEST_MISMATCH if a row shows
            other figures than were signed; RANGE_INVALID for a window that is there twice.
        NotAuthentic: KEY_NOT_PINNED for a total that the key-holder did not sign, or of a city
            that is another's.
    """
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise MalformedInput(Reason.MESSAGE_TOO_LARGE, "a file of totals has at most 128 MiB")
    rows = [_open(row, number, profile) for number, row in enumerate(_decode(data), 1)]
    outcomes = [row.outcome for row in rows]
    if len({found.total.city_id for found in outcomes if isinstance(found, ReleasedTotal)}) > 1:
        raise NotAuthentic(Reason.KEY_NOT_PINNED, "the totals are of different cities")
    rows.sort(key=_window)
    if any(_window(a) == _window(b) for a, b in pairwise(rows)):
        raise MalformedInput(Reason.RANGE_INVALID, "a window is in the file twice")
    return rows


def _window(row: Settled) -> int:
    return row.outcome.window_start


def _decode(data: bytes) -> Sequence[_Encoded]:
    try:
        if data.lstrip()[:1] == b"[":
            return msgspec.json.decode(data, type=list[_Encoded])
        return msgspec.json.Decoder(_Encoded).decode_lines(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedInput(
            Reason.MALFORMED_MESSAGE, "this is not what gridveil totals list --json prints"
        ) from None


def _open(row: _Encoded, number: int, profile: Profile | None) -> Settled:
    if isinstance(row, NotReleasedRow):
        return Settled(NotReleased(row.window_start, row.reason), {})
    try:
        released = _signed(row, profile)
    except (ValueError, MalformedInput):
        raise MalformedInput(
            Reason.MALFORMED_MESSAGE, f"row {number} holds no signed total"
        ) from None
    total = released.total
    shown = [(register.name, register.unit, register.sum) for register in row.registers]
    signed = [(register.name, register.unit, register.sum) for register in total.registers]
    if (row.window_start, shown) != (total.window_start, signed):
        raise MalformedInput(
            Reason.DIGEST_MISMATCH, f"row {number} shows other figures than were signed"
        )
    told = ((register.name, register.standard_deviation) for register in row.registers)
    return Settled(released, {name: found for name, found in told if found is not None})


def _signed(row: ReleasedRow, profile: Profile | None) -> ReleasedTotal:
    encoded, signature = bytes.fromhex(row.signed_total), bytes.fromhex(row.signature)
    if profile is None:
        return ReleasedTotal(Total.decode(encoded), encoded, signature)
    total = open_total(encoded, signature, profile.identity_key)
    if total.city_id != profile.city_id:
        raise NotAuthentic(Reason.KEY_NOT_PINNED, "the total is of another city")
    return ReleasedTotal(total, encoded, signature)
