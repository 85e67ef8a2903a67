"""What Prometheus answers to a range query, read strictly: what services say of themselves.

The series are those of ``deploy/prometheus/recording.yaml``, with a sample at the end of each
window; docs/watchfulness.md shows how to ask for them. Others in the file are passed over, and a
sample that is no finite number says nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.watchdog.observation import Told

MOST_BYTES = 128 * 2**20
LATEST = 2**37
"""Unix seconds; what calendars have."""

REFUSED_REPORTS = "gridveil:reports_refused:window"
LATENCY = "gridveil:call_seconds:window"
LANE_REPORTS = "gridveil:lane_reports:window"
KNOWN = (REFUSED_REPORTS, LATENCY, LANE_REPORTS)


class _Series(msgspec.Struct, frozen=True):
    metric: dict[str, str]
    values: list[tuple[float, str]]


class _Matrix(msgspec.Struct, frozen=True):
    resultType: Literal["matrix"]
    result: list[_Series]


class _Answer(msgspec.Struct, frozen=True):
    status: Literal["success"]
    data: _Matrix


def read_series(path: Path, length: int) -> dict[int, Told]:
    """What was told of each window, by its start.

    Args:
        path: the JSON of an answer to ``query_range`` (Prometheus' HTTP API, v1).
        length: of the city's windows, seconds; a sample at ``t`` is about ``t - length`` to ``t``.

    Raises:
        MalformedInput: MESSAGE_TOO_LARGE above 128 MiB; MALFORMED_MESSAGE for what is no such
            answer, or has none of the series; WINDOW_MISALIGNED for a sample that is not at the end
            of a window; FIELD_RANGE for one below zero or no number; RANGE_INVALID if a series
            is there twice, as one for each instance would be.
    """
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise MalformedInput(Reason.MESSAGE_TOO_LARGE, "a file of series has at most 128 MiB")
    found = _by_name(_decode(data))
    windows: dict[int, dict[tuple[str, str], float]] = defaultdict(dict)
    for name, samples in found.items():
        for window, value in _samples(samples, length):
            windows[window][name] = value
    return {window: _told(values) for window, values in sorted(windows.items())}


def _decode(data: bytes) -> _Answer:
    try:
        return msgspec.json.decode(data, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedInput(
            Reason.MALFORMED_MESSAGE, "this is not what Prometheus answers to a range query"
        ) from None


def _by_name(answer: _Answer) -> dict[tuple[str, str], _Series]:
    found: dict[tuple[str, str], _Series] = {}
    for series in answer.data.result:
        name, lane = series.metric.get("__name__", ""), series.metric.get("lane", "")
        if name not in KNOWN:
            continue
        if (name, lane) in found:
            raise MalformedInput(Reason.RANGE_INVALID, f"{name} is in the file more than once")
        found[name, lane] = series
    if not found:
        raise MalformedInput(Reason.MALFORMED_MESSAGE, f"the file has none of {', '.join(KNOWN)}")
    return found


def _samples(series: _Series, length: int) -> Iterator[tuple[int, float]]:
    name = series.metric["__name__"]
    for time, text in series.values:
        if not length <= time <= LATEST or time % length:
            raise MalformedInput(
                Reason.WINDOW_MISALIGNED, f"{name} has samples that are not at the end of a window"
            )
        value = _number(text)
        if value is None or value < 0:
            raise MalformedInput(Reason.FIELD_RANGE, f"{name} has samples that are no counts")
        if math.isfinite(value):
            yield int(time) - length, value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _told(values: Mapping[tuple[str, str], float]) -> Told:
    lanes = {lane: value for (name, lane), value in values.items() if name == LANE_REPORTS}
    return Told(values.get((REFUSED_REPORTS, "")), values.get((LATENCY, "")), lanes)
