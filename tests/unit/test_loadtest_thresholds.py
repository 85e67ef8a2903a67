"""``--fail-if``: what it understands, and what it then says."""

from __future__ import annotations

import pytest

from gridveil.loadtest.thresholds import NAMES, Threshold
from gridveil.protocol.errors import MalformedInput, Reason

FIGURES = {
    "sent": 20_000,
    "accepted": 19_990,
    "duplicates": 0,
    "refused": 10,
    "errors": 0,
    "retries": 64,
    "p50": 0.004,
    "p90": 0.04,
    "p99": 0.4,
    "p99.9": 1.0,
    "max": 4.0,
    "rate": 499.5,
    "total": 1.0,
}


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("errors>0", False),
        ("errors==0", True),
        ("accepted<19999", True),
        ("accepted < 19990", False),
        ("accepted<=19990", True),
        ("refused!=10", False),
        ("refused>0.05%", False),
        ("refused>=0.05%", True),
        ("p50>4ms", False),
        ("p50>=4ms", True),
        ("p50>3999us", True),
        ("p99>1s", False),
        ("p99>0.3s", True),
        ("p99.9>999ms", True),
        ("max>4s", False),
        ("rate<500/s", True),
        ("rate<499.5/s", False),
        (" total != exact ", False),
        ("total==exact", True),
    ],
)
def test_a_condition_is_compared_with_its_figure_in_its_unit(text: str, failed: bool) -> None:
    assert Threshold.parse(text).holds(FIGURES) is failed


@pytest.mark.parametrize(
    "text",
    [
        *("", "errors", "errors>", ">0", "errors=0", "errors=>0", "errors>>0", "errors<>0"),
        *("errors>0>1", "errors>-1", "errors>1e3", "errors>nan", "errors>.5", "errors>0s"),
        *("errors>٣", "p99>1", "p99>1m", "p99>1 s", "p99>1S", "p99>50%", "rate<500"),
        *("rate<500/m", "rate<500/s/s", "total>1", "total<exact", "total!=1", "errors>exact"),
        *("errors>0; p99>1s", "errors>0\np99>1s", "errors > 0 or p99 > 1s"),
    ],
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(MalformedInput) as refused:
        Threshold.parse(text)
    assert refused.value.reason is Reason.CONFIG_INVALID


def test_an_unknown_name_is_told_all_that_there_are() -> None:
    with pytest.raises(MalformedInput) as refused:
        Threshold.parse("p95>1s")
    assert all(name in refused.value.message for name in NAMES)


def test_a_figure_that_there_is_none_of_is_no_excuse() -> None:
    silent = {name: value for name, value in FIGURES.items() if name != "p99"}
    threshold = Threshold.parse("p99>1s")
    assert threshold.holds(silent)
    assert threshold.told(silent) == "p99 is not known"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("p99>1s", "p99 is 400.0 ms"),
        ("rate<500/s", "rate is 499.5/s"),
        ("accepted<19999", "accepted is 19,990"),
        ("total!=exact", "every total is exact"),
    ],
)
def test_a_figure_is_told_with_its_unit(text: str, told: str) -> None:
    assert Threshold.parse(text).told(FIGURES) == told
