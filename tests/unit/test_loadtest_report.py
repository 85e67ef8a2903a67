"""What is made of a load test's answers: counts, and reports that programs can read."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from gridveil.loadtest.junit import as_junit
from gridveil.loadtest.load import EXPECTED, Kind, Load, Mixture
from gridveil.loadtest.report import as_json, as_lines, figures, passed, violated
from gridveil.loadtest.run import Result, WindowResult
from gridveil.loadtest.tally import Latencies, Prepared, Tally, heals
from gridveil.loadtest.thresholds import Threshold
from gridveil.loadtest.totals import Compared
from gridveil.operator import NotReleased, NotReleasedReason
from gridveil.protocol.errors import (
    Exhausted,
    GridveilError,
    InternalFault,
    MalformedInput,
    NotAuthentic,
    Reason,
    Unavailable,
    WrongState,
)
from gridveil.protocol.v1.report_pb2 import Receipt

START = 1_768_435_200


def report(kind: Kind, place: int = 7, digest: bytes = b"d" * 32) -> Prepared:
    return Prepared(kind, place, 0, b"", b"", b"", b"", digest)


def receipt(*, duplicate: bool = False, digest: bytes = b"d" * 32) -> Receipt:
    return Receipt(report_digest=digest, duplicate=duplicate)


def settled(*answers: tuple[Prepared, Receipt | GridveilError]) -> Tally:
    tally = Tally()
    for one, answer in answers:
        tally.settle(one, answer)
    return tally


@pytest.mark.parametrize("kind", [kind for kind in Kind if EXPECTED[kind]])
def test_a_report_that_must_be_refused_is_an_error_if_it_is_accepted(kind: Kind) -> None:
    tally = settled((report(kind), receipt()))
    assert (tally.accepted, tally.errors.total(), tally.refused.total()) == (0, 1, 0)
    for reason in EXPECTED[kind]:
        tally = settled((report(kind), WrongState(reason, "")))
        assert (tally.errors.total(), dict(tally.refused)) == (0, {reason: 1})


@pytest.mark.parametrize(
    ("kind", "refusal"),
    [
        (Kind.ON_TIME, WrongState(Reason.WINDOW_CLOSED, "")),
        (Kind.RESENT, NotAuthentic(Reason.SIGNATURE_INVALID, "")),
        (Kind.LATE, WrongState(Reason.WINDOW_POISONED, "")),
        (Kind.FORGED, MalformedInput(Reason.FIELD_FORMAT, "")),
        (Kind.MALFORMED, NotAuthentic(Reason.SIGNATURE_INVALID, "")),
    ],
)
def test_a_refusal_for_another_reason_is_an_error(kind: Kind, refusal: GridveilError) -> None:
    tally = settled((report(kind), refusal))
    assert dict(tally.errors) == {f"{kind.name} was refused: {refusal.reason}": 1}
    assert not tally.refused


def test_a_receipt_for_another_report_is_an_error() -> None:
    tally = settled((report(Kind.ON_TIME), receipt(digest=b"e" * 32)))
    assert (tally.accepted, tally.errors.total()) == (0, 1)


def test_a_report_whose_answer_was_lost_is_accepted_once() -> None:
    tally = settled((report(Kind.ON_TIME), receipt(duplicate=True)))
    assert (tally.accepted, tally.known_already, tally.duplicates) == (1, 1, 0)
    assert tally.places == {7}


def test_a_report_that_is_counted_twice_is_an_error() -> None:
    once = settled(
        (report(Kind.ON_TIME), receipt()), (report(Kind.RESENT), receipt(duplicate=True))
    )
    assert (once.accepted, once.duplicates, once.errors.total()) == (1, 1, 0)
    twice = settled((report(Kind.ON_TIME), receipt()), (report(Kind.RESENT), receipt()))
    assert dict(twice.errors) == {"a report was accepted twice": 1}


def test_only_what_time_heals_is_sent_again() -> None:
    assert heals(Unavailable(Reason.UNREACHABLE, ""))
    assert heals(Exhausted(Reason.OVERLOADED, ""))
    assert heals(InternalFault(Reason.INTERNAL, ""))
    assert not heals(WrongState(Reason.WINDOW_CLOSED, ""))
    assert not heals(NotAuthentic(Reason.SIGNATURE_INVALID, ""))
    assert not heals(receipt())


def test_tallies_of_processes_add_up_also_after_they_were_sent() -> None:
    one = settled((report(Kind.ON_TIME, 1), receipt()), (report(Kind.LATE), CLOSED))
    other = settled((report(Kind.ON_TIME, 2, b"e" * 32), receipt(digest=b"e" * 32)))
    one.answered(0.5, 3, now=20.0)
    other.answered(2.0, 1, now=30.0)
    one.begun, other.begun = 11.0, 10.0
    whole = Tally()
    for part in (one, other):
        whole.add(pickle.loads(pickle.dumps(part)))  # noqa: S301 - our own
    assert (whole.accepted, whole.places, whole.settled) == (2, {1, 2}, 3)
    assert (whole.begun, whole.ended) == (10.0, 30.0)
    assert (whole.latencies.count, whole.latencies.above(1.0)) == (4, 1)


CLOSED = WrongState(Reason.WINDOW_CLOSED, "")


def test_percentiles_have_three_digits_over_the_whole_range() -> None:
    latencies = Latencies()
    assert latencies.seconds() == {}
    for milliseconds in range(1, 1_001):
        latencies.record(milliseconds / 1e3)
    latencies.record(7_200.0)
    found = latencies.seconds()
    assert found["p50"] == pytest.approx(0.501, rel=2e-3)
    assert found["p99"] == pytest.approx(0.99, rel=2e-3)
    assert found["max"] == pytest.approx(3_600.0, rel=2e-3)
    assert latencies.above(0.5) == pytest.approx(501, abs=1)


def result(why: str = "", **changes: Any) -> Result:
    tally = settled(
        (report(Kind.ON_TIME), receipt()), (report(Kind.FORGED), NotAuthentic(SIGNATURE, ""))
    )
    tally.sent, tally.begun = 2, 100.0
    tally.answered(0.25, 2, now=104.0)
    outcome = NotReleased(START, NotReleasedReason.REFUSED) if why else None
    compared = None if not why else Compared(1, {"import_wh": 3}, outcome)
    load = Load(meters=100, windows=1, mixture=Mixture(bad=0.01))
    made = Result(load, 5.0, [WindowResult(START, tally, compared)], tally, sending_s=4.0)
    return replace(made, **changes)


SIGNATURE = Reason.SIGNATURE_INVALID


def cases(document: bytes) -> dict[str, str | None]:
    """Test cases with what each failed with, after a look at what every reader relies on."""
    root = ElementTree.fromstring(document)  # noqa: S314 - our own
    (suite,) = root.iter("testsuite")
    found = suite.findall("testcase")
    assert root.tag == "testsuites"
    assert int(suite.attrib["tests"]) == len(found)
    assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure"))
    assert all({"classname", "name", "time"} <= set(case.attrib) for case in found)
    assert all(float(case.attrib["time"]) >= 0 for case in found)
    failures = [case.find("failure") for case in found]
    return {
        case.attrib["name"]: None if failure is None else failure.attrib["message"]
        for case, failure in zip(found, failures, strict=True)
    }


def test_junit_has_a_case_for_each_condition_and_each_window() -> None:
    thresholds = [Threshold.parse(text) for text in ("errors>0", "p99 > 200ms", "rate<1/s")]
    assert cases(as_junit(thresholds, result("refused"))) == {
        "fail if errors>0": None,
        "fail if p99 > 200ms": "p99 is 250.1 ms",
        "fail if rate<1/s": "rate is 0.5/s",
        "total of 2026-01-15T00:00:00Z is exact": "not released: REFUSED",
    }


def test_junit_stays_well_formed_whatever_is_in_it() -> None:
    odd = Threshold("a<b & \"c\" 'd' ]]> \x00\x1b\ufffe \U0001f50c", "errors", ">=", 0.0)
    (name, *_) = cases(as_junit([odd], result("refused")))
    assert name == "fail if a<b & \"c\" 'd' ]]> ??? \U0001f50c"


def test_a_test_that_was_cut_short_has_not_passed() -> None:
    cut = result(interrupted=True)
    assert not passed([], cut)
    found = cases(as_junit([], cut))
    assert found["the test came to its end"] == "it was interrupted"
    empty = Result(cut.load, 5.0, interrupted=True)
    assert not passed([], empty)
    assert cases(as_junit([], empty))["the test came to its end"]
    assert "failed" in list(as_lines([], empty))


def test_a_test_without_an_exact_total_has_failed_without_any_condition() -> None:
    assert not passed([], result("refused"))
    assert figures(result("refused"))["total"] == 0


def test_every_condition_that_is_met_is_printed() -> None:
    thresholds = [Threshold.parse(text) for text in ("errors>0", "p50>1ms", "sent>1")]
    found = result("refused")
    assert violated(thresholds, found) == thresholds[1:]
    lines = list(as_lines(thresholds, found))
    assert "FAILED --fail-if 'p50>1ms': p50 is 250.1 ms" in lines
    assert "FAILED --fail-if 'sent>1': sent is 2" in lines
    assert not any("errors>0" in line for line in lines)


def test_json_is_one_object_with_every_figure() -> None:
    told = json.loads(json.dumps(as_json([Threshold.parse("p50>1ms")], result("refused"))))
    assert (told["sent"], told["accepted"], told["refused"]) == (2, 1, {"SIGNATURE_INVALID": 1})
    assert (told["refused_expected"], told["errors"], told["exact"]) == (1, {}, False)
    assert told["latency_ms"]["p99.9"] == pytest.approx(250, rel=2e-3)
    assert told["latency_of"].startswith("service time")
    assert told["server_cpu_us_per_report"] is None
    assert told["thresholds"] == [
        {"fail_if": "p50>1ms", "violated": True, "found": "p50 is 250.1 ms"}
    ]
    assert told["windows"][0]["failure"] == "not released: REFUSED"
    with_cpu = as_json([], result("refused", cpu_s={"aggregator": 0.001}))
    assert with_cpu["server_cpu_us_per_report"] == {"aggregator": 500.0}
