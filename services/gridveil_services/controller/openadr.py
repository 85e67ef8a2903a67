"""Signals and totals as objects of OpenADR 3.1: events, and a report of aggregated use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from gridveil.cli.output import utc
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil_services.controller.core import Event, Settled, Signal
from gridveil_services.controller.rules import ControlRules

Object = dict[str, Any]

LIMITED_FROM = 3
"""From this level on sites are told a limit."""
_OBJECT_ID = re.compile(r"[a-zA-Z0-9_-]{1,128}")


def events(
    rules: ControlRules, program_id: str, signal: Signal, name: str | None = None
) -> list[Object]:
    """The events of a signal: its level for all, and at level 3 a limit for each site.

    Args:
        rules: whose window length is the events' duration, from the signal's time on.
        program_id: of the VTN.
        signal: what is signalled.
        name: the first event's; further ones have a number behind it.

    Raises:
        MalformedInput: FIELD_FORMAT if the id is none that OpenADR allows.
    """
    check_id(program_id)
    found = [_event(rules, program_id, signal, "SIMPLE", signal.level)]
    if signal.level >= LIMITED_FROM:
        for site, limit_w in apportion(rules.sites_w, rules.sites_share_w).items():
            kind, limit_kw = "IMPORT_CAPACITY_LIMIT", limit_w / 1_000
            limit = _event(rules, program_id, signal, kind, limit_kw, "KW")
            found.append(limit | {"targets": [site]})
    if name is None:
        return found
    names = (f"{name}-{at}" if at else name for at in range(len(found)))
    return [{"eventName": own} | event for own, event in zip(names, found, strict=True)]


def apportion(contracts_w: Mapping[str, int], share_w: int) -> dict[str, int]:
    """What each site may draw, W: the share by contracted power, rounded down, no more than that.

    All limits together are never more than the share; no site is told the limit of all.
    """
    contracted = sum(contracts_w.values())
    return {site: min(power, share_w * power // contracted) for site, power in contracts_w.items()}


def usage_report(
    rules: ControlRules,
    event_id: str,
    client_name: str,
    windows: Iterable[tuple[int, Event]],
) -> Object:
    """The city's use in kWh with its quality, an interval a window.

    ``OK`` is the sum of all enrolled meters; ``ESTIMATED`` that of most, scaled to all; ``MISSING``
    has no value: there was no total, or one of too few.
    """
    check_id(event_id)
    intervals = [
        {
            "id": number,
            "intervalPeriod": {"start": utc(window), "duration": f"PT{rules.window_length}S"},
            "payloads": _usage(rules, event),
        }
        for number, (window, event) in enumerate(windows)
    ]
    return {
        "eventID": event_id,
        "clientName": client_name,
        "payloadDescriptors": [
            {
                "objectType": "REPORT_PAYLOAD_DESCRIPTOR",
                "payloadType": "USAGE",
                "readingType": "SUMMED",
                "units": "KWH",
            },
            {"objectType": "REPORT_PAYLOAD_DESCRIPTOR", "payloadType": "DATA_QUALITY"},
        ],
        "resources": [{"resourceName": "AGGREGATED_REPORT", "intervals": intervals}],
    }


def _usage(rules: ControlRules, event: Event) -> list[Object]:
    if not isinstance(event, Settled) or not rules.covers(event.count, event.enrolled):
        return [{"type": "DATA_QUALITY", "values": ["MISSING"]}]
    whole = event.count == event.enrolled
    energy_wh = event.energy_wh if whole else event.energy_wh * event.enrolled // event.count
    return [
        {"type": "USAGE", "values": [energy_wh / 1_000]},
        {"type": "DATA_QUALITY", "values": ["OK" if whole else "ESTIMATED"]},
    ]


def _event(
    rules: ControlRules,
    program_id: str,
    signal: Signal,
    kind: str,
    value: float,
    units: str | None = None,
) -> Object:
    descriptor = {"objectType": "EVENT_PAYLOAD_DESCRIPTOR", "payloadType": kind}
    return {
        "programID": program_id,
        "payloadDescriptors": [descriptor | ({"units": units} if units else {})],
        "intervalPeriod": {"start": utc(signal.at), "duration": f"PT{rules.window_length}S"},
        "intervals": [{"id": 0, "payloads": [{"type": kind, "values": [value]}]}],
    }


def check_id(value: str) -> None:
    """FIELD_FORMAT unless it is an id as OpenADR has them."""
    if not _OBJECT_ID.fullmatch(value):
        raise MalformedInput(
            Reason.FIELD_FORMAT, "an id of OpenADR has 1 to 128 letters, digits, _ and -"
        )
