"""The index answers from settled windows only, in order, and a token belongs to one listing."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridveil.protocol.errors import IntegrityLost, MalformedInput, Reason, Unavailable
from gridveil.protocol.v1 import totals_pb2
from gridveil_services.rpc import Identity, Role
from gridveil_services.totals.index import SettledIndex
from gridveil_services.totals.paging import Listing, PageTokens

WINDOWS = st.lists(st.integers(1, 60), unique=True, max_size=40)
OPERATOR = Identity(Role.OPERATOR, "operator-1")
LISTING = Listing(OPERATOR, 900, 9_000)


def outcome(window: int) -> totals_pb2.WindowOutcome:
    return totals_pb2.WindowOutcome(
        window_start=window, not_released=totals_pb2.NOT_RELEASED_REASON_EXPIRED
    )


def index_of(windows: list[int]) -> SettledIndex:
    index = SettledIndex()
    index.add([outcome(window) for window in windows])
    return index


@given(WINDOWS, st.integers(0, 60), st.integers(0, 60), st.integers(1, 9))
def test_pages_hold_the_range_in_order_and_once(
    windows: list[int], start: int, until: int, size: int
) -> None:
    index, listed = index_of(windows), []
    position: int | None = start
    while position is not None:
        page, position = index.page(position, until, size)
        assert len(page) == size or position is None
        listed += [found.window_start for found in page]
    assert listed == sorted(w for w in windows if w >= start and (not until or w < until))


@given(WINDOWS, st.integers(1, 60), st.data())
def test_a_watch_gets_each_window_once(windows: list[int], start: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(windows)))
    # A window that is settled, whatever else is: the first look never waits.
    before, after = [*windows[:cut], 99], windows[cut:]
    index, active = index_of(before), True
    watch = index.watch(start, lambda: active)

    watched = [next(watch).window_start]
    index.add([outcome(window) for window in after])
    expected = sorted(w for w in before if w >= start) + [w for w in after if w >= start]
    while len(watched) < len(expected):
        watched.append(next(watch).window_start)
    index.add([outcome(98)])
    watched.append(next(watch).window_start)
    active = False

    assert watched == [*expected, 98]
    assert list(watch) == []


def test_a_watch_from_now_on_leaves_out_what_is_settled() -> None:
    index = index_of([5, 6])
    timer = threading.Timer(0.05, lambda: index.add([outcome(4)]))
    timer.start()
    assert next(index.watch(0, lambda: True)).window_start == 4
    timer.join()


def test_a_watch_ends_when_nobody_listens() -> None:
    index, active = index_of([5]), threading.Event()
    active.set()
    ended = threading.Event()

    def follow() -> None:
        assert [found.window_start for found in index.watch(1, active.is_set)] == [5]
        ended.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert not ended.wait(0.05)
    active.clear()
    index.wake()
    thread.join(10)
    assert ended.is_set()


def test_a_window_that_is_settled_twice_is_corruption() -> None:
    with pytest.raises(IntegrityLost) as raised:
        index_of([3, 4]).add([outcome(3)])
    assert raised.value.reason is Reason.LOG_CORRUPT


def test_a_failure_refuses_everything_until_it_is_mended() -> None:
    index = index_of([3])
    index.fail(Unavailable(Reason.STORE_UNAVAILABLE, "not readable"))
    for read in (
        lambda: index.get(3),
        lambda: index.page(0, 0, 9),
        lambda: next(index.watch(1, lambda: True)),
    ):
        with pytest.raises(Unavailable):
            read()

    index.add([outcome(4)])

    assert [found.window_start for found in index.page(0, 0, 9)[0]] == [3, 4]


def test_a_failure_ends_watches_in_progress() -> None:
    index = index_of([3])
    watch = index.watch(1, lambda: True)
    assert next(watch).window_start == 3
    index.fail(IntegrityLost(Reason.LOG_CORRUPT, "broken"))
    with pytest.raises(IntegrityLost):
        next(watch)


@given(st.integers(0, 2**53))
def test_a_token_leads_back_to_its_place(position: int) -> None:
    tokens = PageTokens()
    assert tokens.open(LISTING, tokens.issue(LISTING, position)) == position


@pytest.mark.parametrize(
    "listing",
    [
        Listing(Identity(Role.OPERATOR, "operator-2"), 900, 9_000),
        Listing(Identity(Role.AUDITOR, "operator-1"), 900, 9_000),
        Listing(OPERATOR, 0, 9_000),
        Listing(OPERATOR, 900, 0),
    ],
)
def test_a_token_is_of_no_use_in_another_listing(listing: Listing) -> None:
    tokens = PageTokens()
    token = tokens.issue(LISTING, 1_800)
    with pytest.raises(MalformedInput) as refused:
        tokens.open(listing, token)
    assert refused.value.reason is Reason.PAGE_TOKEN_INVALID


@given(st.integers(0, 8 * 40 - 1))
def test_no_bit_of_a_token_can_be_changed(bit: int) -> None:
    tokens = PageTokens()
    token = bytearray(tokens.issue(LISTING, 1_800))
    token[bit // 8] ^= 1 << bit % 8
    with pytest.raises(MalformedInput):
        tokens.open(LISTING, bytes(token))


@given(st.binary(max_size=60))
def test_made_up_tokens_are_refused(token: bytes) -> None:
    with pytest.raises(MalformedInput):
        PageTokens().open(LISTING, token)


def test_a_token_dies_with_its_process() -> None:
    with pytest.raises(MalformedInput):
        PageTokens().open(LISTING, PageTokens().issue(LISTING, 1_800))
