"""``traceparent``: which trace a call belongs to (W3C Trace Context, version 00)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

KEY = "traceparent"
"""Of the metadata that carries it."""

_FORMAT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED = 0x01


class Caller(NamedTuple):
    """What a caller says of its span."""

    trace_id: int
    span_id: int
    sampled: bool


def parse(metadata: Iterable[tuple[str, str | bytes]]) -> Caller | None:
    """What the metadata of a call says; None unless it is said once, and exactly in form.

    It is untrusted, and no more than a hint: a caller that sends nonsense is served all the same.
    Of several that come in over gRPC its library hands on the last alone.
    """
    values = [value for key, value in metadata if key == KEY]
    if len(values) != 1 or not isinstance(values[0], str):
        return None
    found = _FORMAT.fullmatch(values[0])
    if found is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    if not trace_id or not span_id:
        return None
    return Caller(trace_id, span_id, bool(flags & _SAMPLED))


def encode(caller: Caller) -> str:
    """The 55 characters of the wire."""
    return f"00-{caller.trace_id:032x}-{caller.span_id:016x}-{caller.sampled:02x}"
