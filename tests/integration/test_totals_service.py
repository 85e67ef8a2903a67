"""The totals service over gRPC and mTLS: what was released, verbatim, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridveil.operator import (
    NotReleased,
    NotReleasedReason,
    ReleasedTotal,
)
from gridveil.protocol.errors import (
    GridveilError,
    IntegrityLost,
    MalformedInput,
    NotAllowed,
    NotFound,
    Reason,
    WrongState,
)
from gridveil.protocol.v1 import totals_pb2
from gridveil.transport import from_rpc_error, server_stream
from gridveil.verification import verify_total
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.rpc.roles import Role
from gridveil_services.totals.serve import TotalsProcess
from tests.support.totals import (
    expired,
    intent,
    publish,
    publish_entries,
    refused,
    released,
)
from tests.support.totals_clients import METERS, client, opened, refusal, stub, window


def test_an_operator_gets_the_total_that_was_signed(
    paths: CityPaths, serve: Callable[[], TotalsProcess]
) -> None:
    made = opened(paths, 0)
    publish(paths, intent(window(0)), released(made))
    serve()

    with client(paths) as operator:
        outcome = operator.get(window(0))

    assert isinstance(outcome, ReleasedTotal)
    assert outcome.total == made.total
    assert (outcome.encoded, outcome.signature) == (
        made.signed().total,
        made.signed().signature,
    )
    assert outcome.sum("import_wh") == made.total.registers[0].sum
    assert outcome.mean("export_wh") == made.total.registers[1].sum / METERS
    assert outcome.coverage == 1.0


def test_a_gap_is_explicit(paths: CityPaths, serve: Callable[[], TotalsProcess]) -> None:
    publish(paths, intent(window(0)), refused(window(0)), expired(window(1)))
    serve()

    with client(paths) as operator:
        assert operator.get(window(0)) == NotReleased(window(0), NotReleasedReason.REFUSED)
        assert operator.get(window(1)) == NotReleased(window(1), NotReleasedReason.EXPIRED)


def test_every_window_without_an_outcome_looks_the_same(
    paths: CityPaths, serve: Callable[[], TotalsProcess]
) -> None:
    """In work, long ago, not begun: nobody learns which by asking."""
    publish(paths, intent(window(0)))
    serve()
    asked = stub(paths)

    answers = set()
    for start in (window(0), 900, window(10**6)):
        error = refusal(
            lambda start=start: asked.GetTotal(  # type: ignore[misc]
                totals_pb2.GetTotalRequest(window_start=start)
            )
        )
        assert isinstance(error, WrongState)
        answers.add((error.reason, error.message, tuple(error.metadata)))

    assert len(answers) == 1
    assert answers.pop()[0] is Reason.NOT_RELEASED


@pytest.mark.parametrize(
    "start", [0, -900, 1, 899, window(0) + 1, 2**53, 2**53 // 900 * 900 + 900, 2**63 - 1, -(2**63)]
)
def test_what_is_no_window_is_refused(
    paths: CityPaths, serve: Callable[[], TotalsProcess], start: int
) -> None:
    serve()
    asked = stub(paths)
    calls: list[Callable[[], object]] = [
        lambda: asked.GetTotal(totals_pb2.GetTotalRequest(window_start=start)),
        lambda: list(asked.GetEntries(totals_pb2.GetEntriesRequest(window_start=start))),
    ]
    if start:
        calls += [
            lambda: asked.ListTotals(totals_pb2.ListTotalsRequest(from_window=start)),
            lambda: asked.ListTotals(totals_pb2.ListTotalsRequest(until_window=start)),
            lambda: list(asked.WatchTotals(totals_pb2.WatchTotalsRequest(from_window=start))),
        ]
    auditor = stub(paths, "auditor")
    calls[1] = lambda: list(auditor.GetEntries(totals_pb2.GetEntriesRequest(window_start=start)))
    for call in calls:
        error = refusal(call)
        assert isinstance(error, MalformedInput)
        assert error.reason is Reason.WINDOW_MISALIGNED


def test_a_listing_pages_through_any_range(
    paths: CityPaths, serve: Callable[[], TotalsProcess]
) -> None:
    settled = [7, 3, 4, 11, 5, 6, 20, 9]
    publish(paths, *(expired(window(at)) for at in settled))
    serve()
    with client(paths) as operator:

        @given(st.integers(0, 22), st.integers(0, 22), st.integers(1, 9))
        @settings(
            max_examples=25,
            deadline=None,
            suppress_health_check=[HealthCheck.function_scoped_fixture],
        )
        def pages(first: int, last: int, size: int) -> None:
            first, last = sorted((first, last))
            found = operator.list(window(first), window(last), page_size=size)
            expected = [window(at) for at in sorted(settled) if first <= at < last]
            assert [outcome.window_start for outcome in found] == expected

        pages()
        assert len(list(operator.list())) == len(settled)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (
            totals_pb2.ListTotalsRequest(from_window=window(2), until_window=window(1)),
            Reason.RANGE_INVALID,
        ),
        (totals_pb2.ListTotalsRequest(page_size=1_001), Reason.RANGE_INVALID),
        (totals_pb2.ListTotalsRequest(page_size=2**32 - 1), Reason.RANGE_INVALID),
        (totals_pb2.ListTotalsRequest(page_token=b"x"), Reason.PAGE_TOKEN_INVALID),
        (totals_pb2.ListTotalsRequest(page_token=bytes(40)), Reason.PAGE_TOKEN_INVALID),
    ],
)
def test_a_listing_that_makes_no_sense_is_refused(
    paths: CityPaths,
    serve: Callable[[], TotalsProcess],
    request_: totals_pb2.ListTotalsRequest,
    reason: Reason,
) -> None:
    serve()
    error = refusal(lambda: stub(paths).ListTotals(request_))
    assert isinstance(error, MalformedInput)
    assert error.reason is reason


def test_a_page_token_belongs_to_its_caller(
    paths: CityPaths, serve: Callable[[], TotalsProcess]
) -> None:
    publish(paths, *(expired(window(at)) for at in range(3)))
    serve()
    page = stub(paths).ListTotals(totals_pb2.ListTotalsRequest(page_size=1))
    following = totals_pb2.ListTotalsRequest(page_size=1, page_token=page.next_page_token)

    assert stub(paths).ListTotals(following).outcomes[0].window_start == window(1)
    error = refusal(lambda: stub(paths, "auditor").ListTotals(following))

    assert error.reason is Reason.PAGE_TOKEN_INVALID


def test_the_first_page_is_bounded_without_asking(
    paths: CityPaths, serve: Callable[[], TotalsProcess]
) -> None:
    publish(paths, *(expired(window(at)) for at in range(101)))
    serve()
    page = stub(paths).ListTotals(totals_pb2.ListTotalsRequest())
    assert len(page.outcomes) == 100
    assert page.next_page_token


def test_a_watch_replays_in_order_and_goes_on_as_windows_settle(
    paths: CityPaths, serve: Callable[[], TotalsProcess]
) -> None:
    publish(paths, *(expired(window(at)) for at in (6, 2, 4)))
    serve()
    with client(paths) as operator:
        outcomes = operator.watch(window(3))
        seen = [next(outcomes).window_start for _ in range(2)]

        # Settled late and out of order, and one before what was asked for.
        made = opened(paths, 5)
        publish(paths, expired(window(8)), expired(window(1)), released(made))
        late = list(islice(outcomes, 2))

    assert seen == [window(4), window(6)]
    assert late[0] == NotReleased(window(8), NotReleasedReason.EXPIRED)
    assert isinstance(late[1], ReleasedTotal)
    assert late[1].total == made.total


def test_a_watch_survives_the_service(paths: CityPaths, serve: Callable[[], TotalsProcess]) -> None:
    """It goes on where it was, also with what settled out of order while nobody served."""
    publish(paths, *(expired(window(at)) for at in (0, 2)))
    first = serve()
    with client(paths) as operator:
        outcomes = operator.watch(window(0))
        seen = [next(outcomes).window_start for _ in range(2)]
        first.stop()
        publish(paths, expired(window(1)), expired(window(3)))
        serve()
        seen += [next(outcomes).window_start for _ in range(2)]
        publish(paths, expired(window(4)))
        seen.append(next(outcomes).window_start)

    assert seen == [window(at) for at in (0, 2, 1, 3, 4)]


def test_a_watcher_that_reads_nothing_holds_nobody_up(
    paths: CityPaths, serve: Callable[[], TotalsProcess]
) -> None:
    publish(paths, *(expired(window(at)) for at in range(5_000)))
    serve()
    stalled = [
        stub(paths).WatchTotals(totals_pb2.WatchTotalsRequest(from_window=window(0)))
        for _ in range(3)
    ]

    with client(paths) as operator:
        assert len(list(islice(operator.watch(window(0)), 5_000))) == 5_000
        assert operator.get(window(7)).window_start == window(7)

    for call in stalled:
        call.cancel()


def test_a_watch_gives_up_when_it_was_told_to(paths: CityPaths) -> None:
    with client(paths) as operator, pytest.raises(GridveilError) as raised:
        next(operator.watch(give_up_after_s=0))
    assert raised.value.reason is Reason.UNREACHABLE


def test_a_watch_is_ended_from_another_thread_at_once_and_for_good(
    paths: CityPaths, serve: Callable[[], TotalsProcess]
) -> None:
    publish(paths, expired(window(0)))
    serve()
    with client(paths) as operator:
        outcomes = operator.watch(window(0))
        assert next(outcomes).window_start == window(0)
        interrupting = threading.Thread(target=operator.interrupt)
        interrupting.start()
        with pytest.raises(GridveilError) as raised:
            next(outcomes)
        interrupting.join()
        assert raised.value.reason is Reason.UNREACHABLE
        with pytest.raises(GridveilError):
            next(operator.watch(window(0)))


@pytest.mark.parametrize("role", list(Role))
def test_each_role_may_ask_what_it_needs_and_no_more(
    paths: CityPaths, serve: Callable[[], TotalsProcess], role: Role
) -> None:
    publish(paths, expired(window(0)))
    serve()
    asked = stub(paths, role)
    readers, meters = {Role.OPERATOR, Role.AUDITOR}, {Role.METER, Role.GATEWAY}
    followers = readers | {Role.CONTROLLER}
    settled, tag = window(0), bytes(16)
    calls: dict[Callable[[], object], set[Role]] = {
        lambda: asked.GetTotal(totals_pb2.GetTotalRequest(window_start=settled)): followers
        | meters,
        lambda: asked.ListTotals(totals_pb2.ListTotalsRequest()): followers,
        lambda: next(
            server_stream(asked.WatchTotals(totals_pb2.WatchTotalsRequest(from_window=settled)))
        ): followers,
        lambda: list(asked.GetEntries(totals_pb2.GetEntriesRequest(window_start=settled))): (
            readers | meters
        ),
        lambda: asked.GetParameters(totals_pb2.GetParametersRequest(window_start=settled)): (
            readers | meters
        ),
        lambda: asked.GetOwnEntry(
            totals_pb2.GetOwnEntryRequest(window_start=settled, tag=tag)
        ): meters,
    }
    for call, allowed in calls.items():
        try:
            call()
        except grpc.RpcError as failure:
            error: GridveilError | None = from_rpc_error(failure)
        except GridveilError as failure:
            error = failure
        else:
            error = None
        if role in allowed:
            assert error is None or error.reason is Reason.NOT_RELEASED
        else:
            assert isinstance(error, NotAllowed)
            assert error.reason is Reason.ROLE_NOT_ALLOWED


def test_an_auditor_verifies_a_total_from_its_entries(
    paths: CityPaths, serve: Callable[[], TotalsProcess]
) -> None:
    made = opened(paths, 0, meters=5_000)
    publish_entries(paths, made)
    publish(paths, released(made))
    serve()

    chunks = list(
        stub(paths, "auditor").GetEntries(totals_pb2.GetEntriesRequest(window_start=window(0)))
    )
    with client(paths, "auditor") as auditor:
        outcome = auditor.get(window(0))
        assert isinstance(outcome, ReleasedTotal)
        found = verify_total(
            outcome.total, auditor.entries(window(0)), made.parameters, made.roster
        )

    assert len(chunks) == 2
    assert all(len(chunk.entries) <= 1_048_576 for chunk in chunks)
    assert found.meters == 5_000
    assert found.signatures_checked


def test_entries_that_are_not_published_are_not_found(
    paths: CityPaths, serve: Callable[[], TotalsProcess]
) -> None:
    publish(paths, released(opened(paths, 0)), refused(window(1)))
    serve()
    with client(paths, "auditor") as auditor:
        with pytest.raises(NotFound):
            list(auditor.entries(window(0)))
        for at in (1, 2):
            with pytest.raises(WrongState) as raised:
                list(auditor.entries(window(at)))
            assert raised.value.reason is Reason.NOT_RELEASED


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0"])
def test_entries_that_are_not_whole_are_refused(
    paths: CityPaths, serve: Callable[[], TotalsProcess], change: Callable[[bytes], bytes]
) -> None:
    made = opened(paths, 0)
    publish_entries(paths, replace(made, entries=change(made.entries)))
    publish(paths, released(made))
    serve()
    with client(paths, "auditor") as auditor, pytest.raises(IntegrityLost) as raised:
        list(auditor.entries(window(0)))
    assert raised.value.reason is Reason.LOG_CORRUPT
