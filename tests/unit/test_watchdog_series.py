"""Prometheus' answers are read strictly: what is no such answer is refused, and nothing guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.watchdog import series
from gridveil.watchdog.observation import Told
from gridveil.watchdog.series import LANE_REPORTS, LATENCY, REFUSED_REPORTS, read_series

END = 1_777_896_900


def one(name: str, *values: tuple[float, str], **labels: str) -> dict[str, Any]:
    return {"metric": {"__name__": name, **labels}, "values": [list(value) for value in values]}


def answer(*found: dict[str, Any]) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": "matrix", "result": list(found)}}


def read(folder: Path, text: str) -> dict[int, Told]:
    path = folder / "series.json"
    path.write_text(text)
    return read_series(path, 900)


def test_a_sample_is_about_the_window_that_ends_with_it(tmp_path: Path) -> None:
    found = answer(
        one(REFUSED_REPORTS, (END, "7"), (END + 900, "0")),
        one(LATENCY, (END, "0.25"), (END + 900.0, "NaN")),
        one(LANE_REPORTS, (END, "120"), lane="0"),
        one(LANE_REPORTS, (END, "118"), lane="1"),
        one("up", (END + 1, "1"), job="gridveil-totals"),
    )
    assert read(tmp_path, json.dumps(found | {"warnings": ["partial"]})) == {
        END - 900: Told(7.0, 0.25, {"0": 120.0, "1": 118.0}),
        END: Told(0.0, None, {}),
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", Reason.MALFORMED_MESSAGE),
        ("\x00", Reason.MALFORMED_MESSAGE),
        ("[" * 100_000, Reason.MALFORMED_MESSAGE),
        ('{"status":"error","error":"query timed out"}', Reason.MALFORMED_MESSAGE),
        (json.dumps(answer()), Reason.MALFORMED_MESSAGE),
        (json.dumps(answer(one("up", (END, "1")))), Reason.MALFORMED_MESSAGE),
        (
            json.dumps(answer(one(LATENCY, (END, "1")))).replace("matrix", "vector"),
            Reason.MALFORMED_MESSAGE,
        ),
        (json.dumps(answer(one(LATENCY, (END, 1)))), Reason.MALFORMED_MESSAGE),  # type: ignore[arg-type]
        (json.dumps(answer(one(LATENCY, (END, "fast")))), Reason.FIELD_RANGE),
        (json.dumps(answer(one(LATENCY, (END, "-1")))), Reason.FIELD_RANGE),
        (json.dumps(answer(one(LATENCY, (END + 15, "1")))), Reason.WINDOW_MISALIGNED),
        (json.dumps(answer(one(LATENCY, (0, "1")))), Reason.WINDOW_MISALIGNED),
        (json.dumps(answer(one(LATENCY, (2.0**50, "1")))), Reason.WINDOW_MISALIGNED),
        (
            json.dumps(answer(one(LATENCY, (END, "1"), instance="a"), one(LATENCY, (END, "2")))),
            Reason.RANGE_INVALID,
        ),
    ],
)
def test_what_is_no_answer_to_a_range_query_is_refused(
    tmp_path: Path, text: str, reason: Reason
) -> None:
    with pytest.raises(MalformedInput) as raised:
        read(tmp_path, text)
    assert raised.value.reason is reason


def test_a_file_above_its_bound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "series.json"
    with path.open("wb") as file:
        file.truncate(series.MOST_BYTES + 1)
    with pytest.raises(MalformedInput) as raised:
        read_series(path, 900)
    assert raised.value.reason is Reason.MESSAGE_TOO_LARGE
