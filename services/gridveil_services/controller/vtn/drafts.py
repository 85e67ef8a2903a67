"""What is to be sent for a signal: its events, and the use of a window that was settled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from gridveil_services.controller.core import Event, Signal, Tick
from gridveil_services.controller.journal import Delivery, Draft, Kind
from gridveil_services.controller.openadr import Object, events, usage_report
from gridveil_services.controller.rules import ControlRules

CLIENT_NAME = "gridveil"


@dataclass(frozen=True)
class Drafter:
    """Makes the objects of one controller. Their names are the same whenever they are made."""

    rules: ControlRules
    program_id: str
    report_event: str | None
    instance: str
    """Of the journal: another history's signals have other names."""
    state: Delivery
    """PENDING, or NOT_SENT where there is no VTN to send to."""

    def __call__(self, number: int, event: Event, signal: Signal) -> Sequence[Draft]:
        """The objects of the signal with a number, in the order in which they are sent."""
        # With its time: a journal that was put back numbers other signals alike.
        name = f"{CLIENT_NAME}-{self.instance}-{signal.at}-{number}"
        made = events(self.rules, self.program_id, signal, name)
        drafts = [self._draft(Kind.EVENT, found["eventName"], found) for found in made]
        if self.report_event is not None and not isinstance(event, Tick):
            name = f"{CLIENT_NAME}-{self.instance}-w{event.window_start}"
            windows = [(event.window_start, event)]
            report = usage_report(self.rules, self.report_event, CLIENT_NAME, windows)
            drafts.append(self._draft(Kind.REPORT, name, {"reportName": name} | report))
        return drafts

    def _draft(self, kind: Kind, name: str, body: Object) -> Draft:
        return Draft(kind, name, json.dumps(body, separators=(",", ":")), self.state)
