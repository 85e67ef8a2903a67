"""A key-holder that signs lies, and what it publishes: what others can check, and cannot learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from gridveil.protocol.city import EntryAudience
from gridveil.protocol.errors import GridveilError
from gridveil.protocol.merkle import inclusion_proof, leaf_hash
from gridveil.protocol.release import ENTRY_BYTES, RegisterTotal
from gridveil.verification import verify_own_entry, verify_total
from tests.support.released import release_window
from tests.support.reports import WINDOW, city_policy
from tests.support.totals import OpenedWindow, open_window, readings

IDENTITY = SigningKey(b"k" * 32)


@lru_cache
def honest() -> OpenedWindow:
    return open_window(city_policy(), IDENTITY, WINDOW, readings(120))


def assert_refused(check: Callable[[], object]) -> None:
    try:
        check()
    except GridveilError:
        return
    pytest.fail("a verifier believed a lie")


def assert_lie(opened: OpenedWindow) -> None:
    """Signed, its root, count and entries right: only what the entries say gives it away."""
    assert_refused(
        lambda: verify_total(opened.total, [opened.entries], opened.parameters, opened.roster)
    )


def test_entries_in_another_order_are_not_believed() -> None:
    """In an order of one's own a meter could stand twice."""
    first, second, *others = honest().single_entries
    assert_lie(honest().with_entries([second, first, *others]))


def test_a_report_that_its_meter_never_signed_is_not_believed() -> None:
    first, *others = honest().single_entries
    assert_lie(honest().with_entries([first[:60] + bytes([first[60] ^ 1]) + first[61:], *others]))


def test_commitments_that_changed_places_are_not_believed() -> None:
    """Their sum is the same."""
    first, second, *others = honest().single_entries
    one, other = first[:ENTRY_BYTES], second[:ENTRY_BYTES]
    swapped = [one + second[ENTRY_BYTES:], other + first[ENTRY_BYTES:], *others]
    assert_lie(honest().with_entries(swapped))


def test_a_lane_said_to_be_left_out_and_counted_is_not_believed() -> None:
    assert_lie(honest().with_total(left_out=(1,)))


def test_a_sum_that_is_off_by_one_is_not_believed() -> None:
    first, second = honest().total.registers
    more = RegisterTotal(first.name, first.unit, first.sum + 1)
    assert_lie(honest().with_total(registers=(more, second)))


def test_a_household_does_not_believe_that_a_total_without_it_counts_it() -> None:
    """Its own entry is real, and so is the total that was signed without it."""
    counted = honest().single_entries
    left, others = counted[7], [*counted[:7], *counted[8:]]
    total, member = honest().with_entries(others).total, honest().roster[left[:16]]
    proofs: Sequence[list[bytes]] = [
        inclusion_proof([leaf_hash(entry) for entry in entries], 7) for entries in (counted, others)
    ]
    for proof in proofs:
        assert_refused(partial(verify_own_entry, total, member, left, 7, proof))


def test_a_household_does_not_take_another_meters_report_for_its_own() -> None:
    entry, other = honest().single_entries[:2]
    proof = inclusion_proof([leaf_hash(e) for e in honest().single_entries], 0)
    impostor = replace(honest().roster[other[:16]], meter_id=entry[:16])
    assert_refused(lambda: verify_own_entry(honest().total, impostor, entry, 0, proof))


def test_what_is_published_for_nobody_names_no_meter(tmp_path: Path) -> None:
    city = release_window(tmp_path, audience=EntryAudience.NOBODY)
    files = (path for path in city.paths.published.rglob("*") if path.is_file())
    published = b"".join(path.read_bytes() for path in files)
    named = [meter for meter in city.meters if meter.meter_id in published]
    assert not named, "what is published names a meter"
