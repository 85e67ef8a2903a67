"""The handlers of ``gridveil.v1.Totals``: what was released, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gridveil.protocol.errors import MalformedInput, Reason, WrongState
from gridveil.protocol.layout import fixed
from gridveil.protocol.own_entry import TAG_BYTES
from gridveil.protocol.release import Total
from gridveil.protocol.v1 import totals_pb2
from gridveil.protocol.v1.aggregator_pb2 import SignedCityParameters
from gridveil.protocol.windows import WindowRules
from gridveil_services.rpc import Binding, Call, Role
from gridveil_services.totals.index import SettledIndex
from gridveil_services.totals.log_service import Prover
from gridveil_services.totals.paging import Listing, PageTokens
from gridveil_services.totals.published import Published

DEFAULT_PAGE = 100
LONGEST_PAGE = 1_000

_READERS = {Role.OPERATOR, Role.AUDITOR}
_FOLLOWERS = _READERS | {Role.CONTROLLER}
_METERS = {Role.METER, Role.GATEWAY}


class TotalsService:
    """Answers from the index; opens files only to read what is published beside the log."""

    def __init__(
        self, index: SettledIndex, prover: Prover, published: Path, window_length: int
    ) -> None:
        self._index = index
        self._prover = prover
        self._published = Published(published)
        self._rules = WindowRules(window_length, grace=0, early_leeway=0)
        self._tokens = PageTokens()

    def get_total(
        self, request: totals_pb2.GetTotalRequest, _call: Call
    ) -> totals_pb2.WindowOutcome:
        return self._prover.prove(self._settled(request.window_start))

    def list_totals(
        self, request: totals_pb2.ListTotalsRequest, call: Call
    ) -> totals_pb2.ListTotalsResponse:
        size = _page_size(request.page_size)
        self._check_range(request.from_window, request.until_window)
        listing = Listing(call.identity, request.from_window, request.until_window)
        start = request.from_window
        if request.page_token:
            start = self._tokens.open(listing, request.page_token)
        outcomes, following = self._index.page(start, request.until_window, size)
        token = b"" if following is None else self._tokens.issue(listing, following)
        proven = map(self._prover.prove, outcomes)
        return totals_pb2.ListTotalsResponse(outcomes=proven, next_page_token=token)

    def watch_totals(
        self, request: totals_pb2.WatchTotalsRequest, call: Call
    ) -> Iterator[totals_pb2.WindowOutcome]:
        if request.from_window:
            self._rules.check_aligned(request.from_window)
        call.on_end(self._index.wake)
        settled = self._index.watch(request.from_window, call.is_active)
        return (self._prover.prove(outcome) for outcome in settled)

    def get_entries(
        self, request: totals_pb2.GetEntriesRequest, call: Call
    ) -> Iterator[totals_pb2.OpenedEntries]:
        chunks = self._published.entries(
            self._released(request.window_start), for_auditors=call.identity.role is Role.AUDITOR
        )
        return (totals_pb2.OpenedEntries(entries=chunk) for chunk in chunks)

    def get_parameters(
        self, request: totals_pb2.GetParametersRequest, _call: Call
    ) -> SignedCityParameters:
        return self._published.parameters(self._released(request.window_start))

    def get_own_entry(
        self, request: totals_pb2.GetOwnEntryRequest, _call: Call
    ) -> totals_pb2.OwnEntry:
        tag = fixed(request.tag, TAG_BYTES, "tag")
        found = self._published.own_entry(self._released(request.window_start), tag)
        if found is None:
            return totals_pb2.OwnEntry()
        return totals_pb2.OwnEntry(
            sealed_entry=found.sealed,
            index=found.index,
            leaf_hash=found.leaf,
            proof=found.proof,
        )

    def _released(self, window_start: int) -> Total:
        outcome = self._settled(window_start)
        if not outcome.HasField("total"):
            raise _not_released()
        return Total.decode(outcome.total.total)

    def _settled(self, window_start: int) -> totals_pb2.WindowOutcome:
        self._rules.check_aligned(window_start)
        outcome = self._index.get(window_start)
        if outcome is None:
            raise _not_released()
        return outcome

    def _check_range(self, from_window: int, until_window: int) -> None:
        for bound in filter(None, (from_window, until_window)):
            self._rules.check_aligned(bound)
        if until_window and from_window > until_window:
            raise MalformedInput(
                Reason.RANGE_INVALID, "from_window is after until_window", field="from_window"
            )


def totals_binding(service: TotalsService) -> Binding:
    """The service for a server, with who may call what."""
    return Binding(
        totals_pb2.DESCRIPTOR.services_by_name["Totals"],
        service,
        {
            "GetTotal": _FOLLOWERS | _METERS,
            "ListTotals": _FOLLOWERS,
            "WatchTotals": _FOLLOWERS,
            "GetEntries": _READERS | _METERS,
            "GetParameters": _READERS | _METERS,
            "GetOwnEntry": _METERS,
        },
    )


def _page_size(asked: int) -> int:
    if asked > LONGEST_PAGE:
        raise MalformedInput(
            Reason.RANGE_INVALID, f"page_size is at most {LONGEST_PAGE}", field="page_size"
        )
    return asked or DEFAULT_PAGE


def _not_released() -> WrongState:
    return WrongState(Reason.NOT_RELEASED, "nothing is released for this window")
