"""OpenADR 3.1: what is made of signals and totals.

The specification is not part of this project: GRIDVEIL_OPENADR names a folder that has
openadr3.yaml and the schemas of the Alliance beside it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from openadr3.entities.models import Event as IndependentEvent
from openadr3.entities.models import Report as IndependentReport
from openapi_schema_validator import OAS30Validator, oas30_format_checker

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil_services.controller.core import Basis, Cause, Event, Gap, Settled, Signal, Tick
from gridveil_services.controller.journal import Delivery
from gridveil_services.controller.openadr import apportion, events, usage_report
from gridveil_services.controller.rules import ControlRules
from gridveil_services.controller.vtn.drafts import Drafter

WINDOW = 1_544_770_800
AT = WINDOW + 960
RULES = ControlRules(
    capacity_w=1_000_000,
    hysteresis_w=30_000,
    ramp_limit_w=200_000,
    sites_w={"works": 300_000, "mall": 100_000},
    sites_share_w=200_001,
)
WINDOWS: list[tuple[int, Event]] = [
    (WINDOW, Settled(AT, WINDOW, 217_500, 100, 100)),
    (WINDOW + 900, Settled(AT + 900, WINDOW + 900, 200_000, 80, 100)),
    (WINDOW + 1_800, Settled(AT + 1_800, WINDOW + 1_800, 90_000, 40, 100)),
    (WINDOW + 2_700, Gap(AT + 2_700, WINDOW + 2_700, "REFUSED")),
    (WINDOW + 3_600, Tick(AT + 3_600)),
]
SPECIFICATION = pytest.mark.skipif(
    "GRIDVEIL_OPENADR" not in os.environ,
    reason="GRIDVEIL_OPENADR names no folder with the OpenADR 3.1 specification",
)


def signal(level: int) -> Signal:
    return Signal(AT, WINDOW, level, Basis.MEASURED, Cause.CAPACITY, 1_000_000)


def report() -> dict[str, Any]:
    return usage_report(RULES, "event-7", "springfield", WINDOWS)


def specified(name: str, found: object) -> None:
    """Raise what is wrong with an object, by the specification."""
    folder = Path(os.environ["GRIDVEIL_OPENADR"])
    document = yaml.safe_load((folder / "openadr3.yaml").read_text("utf-8"))
    schema = {"components": document["components"], "$ref": f"#/components/schemas/{name}"}
    OAS30Validator(schema, format_checker=oas30_format_checker).validate(found)


def specified_payloads(kind: str, found: dict[str, Any]) -> None:
    """Raise what is wrong with the values of payloads, by the Alliance's enumerations."""
    folder = Path(os.environ["GRIDVEIL_OPENADR"])
    schemas = yaml.safe_load((folder / f"{kind}.schema.yaml").read_text("utf-8"))
    intervals = found.get("intervals") or found["resources"][0]["intervals"]
    payloads = [payload for interval in intervals for payload in interval["payloads"]]
    assert payloads
    for payload in payloads:
        OAS30Validator(schemas["definitions"][payload["type"]]).validate(payload["values"])


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_a_level_is_an_event_of_one_window(level: int) -> None:
    assert events(RULES, "city-dr", signal(level))[0] == {
        "programID": "city-dr",
        "payloadDescriptors": [{"objectType": "EVENT_PAYLOAD_DESCRIPTOR", "payloadType": "SIMPLE"}],
        "intervalPeriod": {"start": "2018-12-14T07:16:00Z", "duration": "PT900S"},
        "intervals": [{"id": 0, "payloads": [{"type": "SIMPLE", "values": [level]}]}],
    }


def test_each_site_is_told_its_own_limit_at_level_three_and_none_below() -> None:
    assert len(events(RULES, "city-dr", signal(2))) == 1
    _, *limits = events(RULES, "city-dr", signal(3))
    told = {event["targets"][0]: event["intervals"][0]["payloads"] for event in limits}
    assert told == {
        "works": [{"type": "IMPORT_CAPACITY_LIMIT", "values": [150.0]}],
        "mall": [{"type": "IMPORT_CAPACITY_LIMIT", "values": [50.0]}],
    }
    assert {event["payloadDescriptors"][0]["units"] for event in limits} == {"KW"}


@given(
    st.dictionaries(st.text(min_size=1), st.integers(1, 2**50), max_size=9),
    st.integers(0, 2**50),
)
def test_limits_together_never_exceed_the_share_nor_a_site_its_contract(
    contracts: dict[str, int], share: int
) -> None:
    limits = apportion(contracts, share)
    assert limits.keys() == contracts.keys()
    assert sum(limits.values()) <= share
    assert all(0 <= limits[site] <= contracts[site] for site in contracts)


def test_use_is_reported_with_its_quality_and_gaps_without_a_value() -> None:
    found = report()["resources"][0]
    assert found["resourceName"] == "AGGREGATED_REPORT"
    assert [
        {payload["type"]: payload["values"] for payload in interval["payloads"]}
        for interval in found["intervals"]
    ] == [
        {"USAGE": [217.5], "DATA_QUALITY": ["OK"]},
        {"USAGE": [250.0], "DATA_QUALITY": ["ESTIMATED"]},
        {"DATA_QUALITY": ["MISSING"]},
        {"DATA_QUALITY": ["MISSING"]},
        {"DATA_QUALITY": ["MISSING"]},
    ]


@pytest.mark.parametrize("bad", ["", "a b", "x" * 129, "é", "a\n"])
def test_an_id_that_openadr_does_not_allow_is_refused(bad: str) -> None:
    for make in (
        lambda: events(RULES, bad, signal(0)),
        lambda: usage_report(RULES, bad, "springfield", WINDOWS),
    ):
        with pytest.raises(MalformedInput) as refused:
            make()
        assert refused.value.reason is Reason.FIELD_FORMAT


def test_an_independent_implementation_reads_what_was_meant() -> None:
    level, works, _ = (IndependentEvent.from_raw(event) for event in events(RULES, "p", signal(3)))
    (interval,) = level.resolved_intervals()
    period = interval.interval_period
    assert period is not None
    assert period.start is not None
    assert period.duration is not None
    assert (period.start.timestamp(), period.duration.total_seconds()) == (AT, 900)
    assert (interval.payloads[0].type, list(interval.payloads[0].values)) == ("SIMPLE", [3])
    assert works.targets == ["works"]
    read = IndependentReport.from_raw(report())
    assert (read.event_id, read.client_name) == ("event-7", "springfield")
    assert len(read.resources[0].intervals) == len(WINDOWS)


@SPECIFICATION
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_events_are_as_specified(level: int) -> None:
    for event in events(RULES, "city-dr", signal(level)):
        specified("eventRequest", event)
        specified_payloads("event-interval-payloads", event)


@SPECIFICATION
def test_reports_are_as_specified() -> None:
    specified("reportRequest", report())
    specified_payloads("report-payloads", report())


@SPECIFICATION
def test_the_specification_notices_what_is_wrong() -> None:
    (event,) = events(RULES, "city-dr", signal(0))
    del event["payloadDescriptors"][0]["objectType"]
    with pytest.raises(Exception, match="objectType"):
        specified("eventRequest", event)
    (event,) = events(RULES, "city-dr", signal(0))
    event["intervals"][0]["payloads"][0]["values"] = [4]
    with pytest.raises(Exception, match="4"):
        specified_payloads("event-interval-payloads", event)


def test_another_signal_of_the_same_number_has_events_of_another_name() -> None:
    """As after a journal was put back: a VTN must not take one for the other."""
    drafter = Drafter(RULES, "city-dr", None, "0badcafe", Delivery.PENDING)
    one = drafter(7, Tick(AT), signal(1))
    other = drafter(7, Tick(AT + 900), msgspec.structs.replace(signal(0), at=AT + 900))

    assert {draft.name for draft in one}.isdisjoint(draft.name for draft in other)
    assert [draft.name for draft in one] == [
        draft.name for draft in drafter(7, Tick(AT), signal(1))
    ]
