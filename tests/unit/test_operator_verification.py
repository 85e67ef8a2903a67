"""A total verifies from its opened entries only if it is exactly what the meters committed to."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from gridveil.protocol.errors import GridveilError, Reason
from gridveil.protocol.release import ENTRY_BYTES, OPENED_ENTRY_BYTES, RegisterTotal
from gridveil.protocol.slots import GROUP_ORDER
from gridveil.protocol.windows import lane_of
from gridveil.verification import Verification, verify_total
from tests.support.reports import WINDOW, city_policy, make_members
from tests.support.totals import OpenedWindow, open_window, readings

METERS = 120
IDENTITY = SigningKey(b"k" * 32)


@lru_cache
def honest() -> OpenedWindow:
    return open_window(city_policy(), IDENTITY, WINDOW, readings(METERS), enrolled=130)


def verified(opened: OpenedWindow, *, with_roster: bool = True) -> Verification:
    roster = opened.roster if with_roster else None
    return verify_total(opened.total, [opened.entries], opened.parameters, roster)


def lanes_of(opened: OpenedWindow) -> set[int]:
    total = opened.total
    place = total.epoch_id, total.window_start
    return {lane_of(*place, entry[:16], total.lanes) for entry in opened.single_entries}


def reason_of(opened: OpenedWindow, *, with_roster: bool = True) -> Reason:
    with pytest.raises(GridveilError) as refused:
        verified(opened, with_roster=with_roster)
    return refused.value.reason


def test_an_honest_total_verifies() -> None:
    assert verified(honest()) == Verification(METERS, 2, signatures_checked=True)
    assert not verified(honest(), with_roster=False).signatures_checked


@given(st.lists(st.integers(0, METERS * OPENED_ENTRY_BYTES), max_size=5))
@settings(max_examples=10, deadline=None)
def test_entries_may_arrive_cut_anywhere(cuts: list[int]) -> None:
    opened = honest()
    edges = sorted({0, len(opened.entries), *cuts})
    chunks = [opened.entries[a:b] for a, b in pairwise(edges)]
    assert verify_total(opened.total, chunks, opened.parameters).meters == METERS


@given(st.integers(0, METERS * OPENED_ENTRY_BYTES * 8 - 1))
@settings(max_examples=60, deadline=None)
def test_no_bit_of_the_entries_can_be_changed(bit: int) -> None:
    """Not even by who could make the digest fit: the meters' own signatures stop that."""
    opened = honest()
    changed = bytearray(opened.entries)
    changed[bit // 8] ^= 1 << bit % 8
    assert reason_of(replace(opened, entries=bytes(changed))) in Reason

    size = OPENED_ENTRY_BYTES
    entries = [bytes(changed[at : at + size]) for at in range(0, len(changed), size)]
    assert reason_of(opened.with_entries(entries)) in Reason


def test_a_sum_that_is_off_by_one_does_not_open() -> None:
    opened = honest()
    registers = tuple(
        RegisterTotal(r.name, r.unit, r.sum + (r.name == "export_wh"))
        for r in opened.total.registers
    )
    assert reason_of(opened.with_total(registers=registers)) is Reason.OPENING_FAILED


def test_registers_cannot_be_swapped() -> None:
    opened = honest()
    one, other = opened.total.registers
    swapped = (replace(one, sum=other.sum), replace(other, sum=one.sum))
    assert reason_of(opened.with_total(registers=swapped)) is Reason.OPENING_FAILED


def test_another_blinding_does_not_open() -> None:
    opened = honest()
    other = (int.from_bytes(opened.total.blinding, "little") + 1) % GROUP_ORDER
    changed = opened.with_total(blinding=other.to_bytes(32, "little"))
    assert reason_of(changed) is Reason.OPENING_FAILED


def test_a_meter_that_was_left_out_is_missed() -> None:
    opened = honest()
    assert reason_of(opened.with_entries(opened.single_entries[1:])) is Reason.OPENING_FAILED


def test_a_meter_that_was_counted_twice_is_found() -> None:
    entries = honest().single_entries
    assert reason_of(honest().with_entries([entries[0], *entries])) is Reason.COHORT_INVALID


def test_entries_stand_in_one_order_only() -> None:
    first, second, *others = honest().single_entries
    assert reason_of(honest().with_entries([second, first, *others])) is Reason.COHORT_INVALID


def test_entries_of_a_lane_that_was_left_out_are_refused() -> None:
    assert {0, 1} == lanes_of(honest())
    for lane in (0, 1):
        assert reason_of(honest().with_total(left_out=(lane,))) is Reason.COHORT_INVALID


def test_a_commitment_that_was_not_reported_is_found() -> None:
    """A key-holder cannot make up commitments that fit the total it would like."""
    first, second, *others = honest().single_entries
    swapped = first[:ENTRY_BYTES] + second[ENTRY_BYTES:]
    changed = honest().with_entries([swapped, second, *others])
    assert reason_of(changed, with_roster=False) is Reason.DIGEST_MISMATCH


def test_a_report_that_its_meter_did_not_sign_is_found_with_the_roster() -> None:
    first, *others = honest().single_entries
    forged = first[: ENTRY_BYTES - 1] + bytes([first[ENTRY_BYTES - 1] ^ 1]) + first[ENTRY_BYTES:]
    changed = honest().with_entries([forged, *others])
    assert reason_of(changed) is Reason.SIGNATURE_INVALID
    assert not verified(changed, with_roster=False).signatures_checked


def test_a_meter_that_was_never_enrolled_is_found_with_the_roster() -> None:
    opened = honest()
    invented = {meter.meter_id: meter.member for meter in make_members(METERS, seed=1)}
    roster = dict(list(opened.roster.items())[1:]) | invented
    assert reason_of(replace(opened, roster=roster)) is Reason.COHORT_INVALID


def test_entries_of_another_window_are_refused() -> None:
    other = open_window(city_policy(), IDENTITY, WINDOW + 900, readings(METERS), enrolled=130)
    assert reason_of(honest().with_entries(other.single_entries)) in {
        Reason.COHORT_INVALID,
        Reason.DIGEST_MISMATCH,
    }
    assert reason_of(replace(honest(), parameters=other.parameters, entries=other.entries))


def test_entries_that_end_too_soon_are_refused() -> None:
    for cut in (1, OPENED_ENTRY_BYTES, 10 * OPENED_ENTRY_BYTES):
        opened = replace(honest(), entries=honest().entries[:-cut])
        assert reason_of(opened) is Reason.DIGEST_MISMATCH


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"enrolled": 200}, Reason.COHORT_INVALID),
        ({"lanes": 3}, Reason.COHORT_INVALID),
        ({"epoch_id": bytes(16)}, Reason.COHORT_INVALID),
        ({"window_length": 1800}, Reason.COHORT_INVALID),
        ({"window_start": WINDOW + 86_400}, Reason.COHORT_INVALID),
        ({"parameters_digest": bytes(32)}, Reason.DIGEST_MISMATCH),
        ({"city_id": bytes(16)}, Reason.DIGEST_MISMATCH),
        ({"entries_root": bytes(32)}, Reason.DIGEST_MISMATCH),
        ({"count": METERS + 1}, Reason.COHORT_INVALID),
        ({"registers": ()}, Reason.COHORT_INVALID),
    ],
)
def test_what_the_signed_policy_rules_out_is_refused(
    changes: dict[str, object], reason: Reason
) -> None:
    assert reason_of(honest().with_total(**changes)) is reason


def test_a_cohort_below_the_policys_is_refused() -> None:
    small = open_window(city_policy(), IDENTITY, WINDOW, readings(99))
    assert reason_of(small) is Reason.COHORT_INVALID


def test_a_sum_beyond_what_the_meters_can_report_is_refused() -> None:
    values = [[1, 1] for _ in range(METERS)]
    values[0][0] = 200_000 * METERS
    assert reason_of(open_window(city_policy(), IDENTITY, WINDOW, values)) is Reason.OPENING_FAILED
