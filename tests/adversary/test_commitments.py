"""An aggregator with corrupted meters, which sign what it likes.

A corrupted meter gives away its keys: the attacker seals and signs in its name, with any
commitment and any ciphertext. What it lacks is the sight of an honest meter's commitment. For each
attack that needs one there is a test that hands it over, and shows the total that would come out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from gridveil.protocol.commitment import IDENTITY, commitment_hash
from gridveil.protocol.release import OPENED_ENTRY_BYTES
from gridveil.protocol.report import Report
from gridveil.protocol.sealing import seal, x25519_public
from gridveil.protocol.slots import GROUP_ORDER
from tests.adversary.city import VICTIM_WH, AttackedCity
from tests.adversary.forging import (
    combined,
    commitment_in,
    encrypted,
    forged_report,
    multiplied,
    negated,
    readable_commitment,
    resigned,
    scaled,
    seal_key,
    slots_of,
    total_of,
    zero,
)
from tests.support.reports import MeterKeys, build_report, generators

Known = dict[bytes, bytes]
"""Commitments of others that the attacker has, by meter."""


def seen_by_the_attacker(city: AttackedCity, reports: Sequence[Report]) -> Known:
    """Every commitment that can be read from a report as it arrives: none, if they are sealed."""
    read = {r.claim.meter_id: readable_commitment(city.parameters, r) for r in reports}
    return {meter: commitment for meter, commitment in read.items() if commitment}


def given_away(city: AttackedCity, reports: Sequence[Report]) -> Known:
    """Every commitment, as if reports carried them in the open."""
    return {
        report.claim.meter_id: commitment_in(city.parameters, meter, report)
        for meter, report in zip(city.day.meters, reports, strict=True)
    }


def own_commitment(city: AttackedCity, window: int) -> bytes:
    """The best that can be done without knowing: one whose opening the attacker knows."""
    return generators(city.parameters, window).commit([0, 0], 1)


# A corrupted meter that signs minus the sum of the others.


def related(city: AttackedCity, reports: Sequence[Report], known: Known) -> list[Report]:
    """All reports; one corrupted meter a lane cancels everybody in it but the victim."""
    corrupted: dict[int, int] = {}
    for at, report in enumerate(reports[1:], 1):
        corrupted.setdefault(city.lane(report), at)
    made = list(reports)
    for lane, at in corrupted.items():
        others = [
            r for other, r in enumerate(reports) if other not in {0, at} and city.lane(r) == lane
        ]
        made[at] = minus(city, city.day.meters[at], others, known)
    return made


def minus(city: AttackedCity, meter: MeterKeys, others: Sequence[Report], known: Known) -> Report:
    """A report with minus the others' ciphertexts and, if they are known, commitments."""
    window = others[0].claim.window_start
    sum_ = combined(city.parameters, *(r.ciphertext for r in others))
    if all(r.claim.meter_id in known for r in others):
        commitment = negated(total_of([known[r.claim.meter_id] for r in others]))
    else:
        commitment = own_commitment(city, window)
    negative = scaled(city.parameters, sum_, -1)
    return forged_report(city.parameters, meter, window, commitment, negative)


def test_a_commitment_related_to_all_others_is_left_out(city: AttackedCity) -> None:
    """The attacker gains nothing: what it must commit to is sealed when it must."""
    window = city.window()
    reports = city.reports(window)
    made = related(city, reports, seen_by_the_attacker(city, reports))
    city.assert_gains_nothing(city.built(made), reports)


def test_without_the_seal_a_related_commitment_would_release_one_reading(
    city: AttackedCity,
) -> None:
    """The counterpart: with all commitments in view the same release opens to the victim's."""
    window = city.window()
    reports = city.reports(window)
    made = related(city, reports, given_away(city, reports))
    assert city.release(city.built(made)).receipt
    assert city.total(window).sum("import_wh") == VICTIM_WH


# Re-randomised copies of the victim's report.

COPIES = 299
"""Of 402 reports."""


def copies(city: AttackedCity, reports: Sequence[Report], known: Known, count: int) -> list[Report]:
    """All reports; the last ``count`` meters are corrupted and copy the victim's."""
    victim, meters = reports[0], city.day.meters
    made = list(reports)
    for at in range(len(reports) - count, len(reports)):
        made[at] = copy_of(city, meters[at], victim, known)
    return made


def copy_of(city: AttackedCity, meter: MeterKeys, victim: Report, known: Known) -> Report:
    """The victim's ciphertext, made to look fresh, with its commitment as well as can be."""
    parameters, claim = city.parameters, victim.claim
    fresh = combined(parameters, victim.ciphertext, zero(parameters))
    commitment = known.get(claim.meter_id)
    if commitment is None:
        own = own_commitment(city, claim.window_start)
        report = forged_report(parameters, meter, claim.window_start, own, fresh)
        return resigned(
            report,
            meter,
            commitment_hash=claim.commitment_hash,
            sealed_commitment=claim.sealed_commitment,
        )
    return forged_report(parameters, meter, claim.window_start, commitment, fresh)


def test_copies_of_the_victims_report_are_left_out(city: AttackedCity) -> None:
    """299 copies gain nothing: the victim's seal opens under no other meter's key."""
    window = city.window()
    reports = city.reports(window)
    made = copies(city, reports, seen_by_the_attacker(city, reports), COPIES)
    city.assert_gains_nothing(city.built(made), reports, decrypted=False)


def test_without_the_seal_copies_would_multiply_one_reading(city: AttackedCity) -> None:
    """The counterpart: with the victim's commitment in view its reading counts 300 times."""
    window = city.window()
    reports = city.reports(window)
    made = copies(city, reports, given_away(city, reports), COPIES)
    assert city.release(city.built(made)).receipt
    others = city.readings(window, len(reports))[1:-COPIES]
    total = city.total(window).sum("import_wh")
    assert total == (COPIES + 1) * VICTIM_WH + sum(values[0] for values in others)
    assert total // (COPIES + 1) - VICTIM_WH < 300, "the total gives the victim's reading away"


def test_a_copied_seal_does_not_open_with_its_own_hash_too(city: AttackedCity) -> None:
    """A blob of the victim's below the corrupted meter's own h gains nothing either."""
    window = city.window()
    reports = city.reports(window)
    stolen = {"sealed_commitment": reports[0].claim.sealed_commitment}
    reports_made = [*reports[:-1], resigned(reports[-1], city.day.meters[-1], **stolen)]
    city.assert_gains_nothing(city.built(reports_made), reports, decrypted=False)


# What was opened once, in another window.


@pytest.mark.parametrize("factor", [1, 2, 20])
def test_a_multiple_of_a_report_of_the_last_window_is_left_out(
    city: AttackedCity, factor: int
) -> None:
    """The opened entries of a released window gain nothing in the next: its generators differ.

    Here the attacker knows the victim's old commitment for certain, because entries are published.
    """
    before, window = city.window(), city.window()
    old = city.reports(before)
    city.assert_released(city.built(old), city.truth(before))
    commitment = published_commitment(city, before, old[0])
    multiple = forged_report(
        city.parameters,
        city.day.meters[-1],
        window,
        multiplied(commitment, factor),
        scaled(city.parameters, old[0].ciphertext, factor),
    )
    reports = city.reports(window)
    city.assert_gains_nothing(city.built([*reports[:-1], multiple]), reports)


def published_commitment(city: AttackedCity, window: int, report: Report) -> bytes:
    """The commitment of a report in the opened entries of its window."""
    entries = city.entries_file(window).read_bytes()
    at = entries.index(report.claim.meter_id)
    assert at % OPENED_ENTRY_BYTES == 0
    return entries[at + OPENED_ENTRY_BYTES - 32 : at + OPENED_ENTRY_BYTES]


# Reports that are wrong in themselves, in otherwise honest releases.

Forge = Callable[[AttackedCity, MeterKeys, int, Report], Report]


def another_h(city: AttackedCity, meter: MeterKeys, window: int, own: Report) -> Report:
    """h is not the commitment's, and the seal is made with it all the same."""
    commitment = commitment_in(city.parameters, meter, own)
    return forged_report(
        city.parameters, meter, window, commitment, own.ciphertext, shown=bytes(range(32))
    )


def h_of_another_meter(city: AttackedCity, meter: MeterKeys, window: int, own: Report) -> Report:
    """h is the commitment's, but computed for the victim's id."""
    parameters, epoch = city.parameters, city.parameters.epoch
    commitment = commitment_in(parameters, meter, own)
    h = commitment_hash(
        parameters.policy.city_id, epoch.epoch_id, window, city.victim.meter_id, commitment
    )
    return forged_report(parameters, meter, window, commitment, own.ciphertext, shown=h)


def unsealed(city: AttackedCity, meter: MeterKeys, window: int, own: Report) -> Report:
    """The commitment stands in the blob's place as it is, with nothing sealed."""
    commitment = commitment_in(city.parameters, meter, own)
    return resigned(own, meter, sealed_commitment=commitment + bytes(16))


def sealed_to_another_key(city: AttackedCity, meter: MeterKeys, window: int, own: Report) -> Report:
    """The commitment is sealed, but to a key of the attacker's own."""
    parameters = city.parameters
    commitment, claim = commitment_in(parameters, meter, own), own.claim
    key = seal_key(parameters, meter, to=x25519_public(bytes(range(32))))
    blob = seal(key, commitment, claim.commitment_hash, claim.seal_data())
    return resigned(own, meter, sealed_commitment=blob)


def sealed_for_another_ciphertext(
    city: AttackedCity, meter: MeterKeys, window: int, own: Report
) -> Report:
    """h and blob of one report stand beside the ciphertext of another."""
    other = build_report(city.parameters, meter, window, [7, 0])
    return resigned(
        other,
        meter,
        commitment_hash=own.claim.commitment_hash,
        sealed_commitment=own.claim.sealed_commitment,
    )


def identity(city: AttackedCity, meter: MeterKeys, window: int, own: Report) -> Report:
    """The neutral point: a commitment that hides nothing and shifts nothing."""
    return forged_report(
        city.parameters, meter, window, IDENTITY, encrypted(city.parameters, [0.0] * 64)
    )


def no_point(city: AttackedCity, meter: MeterKeys, window: int, own: Report) -> Report:
    """32 bytes that are no point of the group."""
    return forged_report(city.parameters, meter, window, b"\xff" * 32, own.ciphertext)


@pytest.mark.parametrize(
    "forge",
    [
        another_h,
        h_of_another_meter,
        unsealed,
        sealed_to_another_key,
        sealed_for_another_ciphertext,
        identity,
        no_point,
    ],
)
def test_a_commitment_that_is_not_sealed_as_it_must_be_is_left_out(
    city: AttackedCity, forge: Forge
) -> None:
    """The attacker gains nothing, and not one bit about the secret key: nothing is decrypted."""
    window = city.window()
    reports = city.reports(window)
    made = forge(city, city.day.meters[-1], window, reports[-1])
    city.assert_gains_nothing(city.built([*reports[:-1], made]), reports, decrypted=False)


def another_reading(city: AttackedCity, meter: MeterKeys, window: int, own: Report) -> Report:
    """One reading is committed to, another encrypted."""
    parameters = city.parameters
    commitment = generators(parameters, window).commit([10, 0], 5)
    ciphertext = encrypted(parameters, slots_of(parameters, [11, 0], 5))
    return forged_report(parameters, meter, window, commitment, ciphertext)


def another_blinding(city: AttackedCity, meter: MeterKeys, window: int, own: Report) -> Report:
    """The reading is right, the blinding is not."""
    parameters = city.parameters
    commitment = generators(parameters, window).commit([10, 0], 5)
    ciphertext = encrypted(parameters, slots_of(parameters, [10, 0], 6))
    return forged_report(parameters, meter, window, commitment, ciphertext)


def another_register(city: AttackedCity, meter: MeterKeys, window: int, own: Report) -> Report:
    """What is committed to as import is encrypted as export."""
    parameters = city.parameters
    commitment = generators(parameters, window).commit([10, 0], 5)
    ciphertext = encrypted(parameters, slots_of(parameters, [0, 10], 5))
    return forged_report(parameters, meter, window, commitment, ciphertext)


def beyond_the_bound(city: AttackedCity, meter: MeterKeys, window: int, own: Report) -> Report:
    """One meter reports more than all meters together may: it opens, and is refused."""
    values = [2**32 - 1, 0]
    assert values[0] > len(city.day.meters) * city.parameters.policy.registers[0].bound
    return build_report(city.parameters, meter, window, values)


def below_zero(city: AttackedCity, meter: MeterKeys, window: int, own: Report) -> Report:
    """A negative reading, committed to and encrypted alike, larger than everybody's together."""
    parameters = city.parameters
    slots = slots_of(parameters, [0, 0], 5)
    slots[7] = -20.0
    value = -20 * 256**3 % GROUP_ORDER
    commitment = generators(parameters, window).commit([0, value], 5)
    return forged_report(parameters, meter, window, commitment, encrypted(parameters, slots))


def a_byte_of_65536(city: AttackedCity, meter: MeterKeys, window: int, own: Report) -> Report:
    """One slot holds what 257 meters could not, and the commitment is to just that."""
    parameters = city.parameters
    slots = slots_of(parameters, [0, 0], 5)
    slots[0] = 65536.0
    commitment = generators(parameters, window).commit([65536, 0], 5)
    return forged_report(parameters, meter, window, commitment, encrypted(parameters, slots))


def wrapped(city: AttackedCity, meter: MeterKeys, window: int, own: Report) -> Report:
    """A slot is committed to as q / scale, which decrypts as next to nothing."""
    parameters = city.parameters
    weight = sum(2**26 * 256**place for place in range(56))
    register = sum(2**26 * 256**place for place in range(4))
    commitment = generators(parameters, window).commit([register, register], weight)
    return forged_report(parameters, meter, window, commitment, zero(parameters))


@pytest.mark.parametrize(
    "forge",
    [
        another_reading,
        another_blinding,
        another_register,
        beyond_the_bound,
        below_zero,
        a_byte_of_65536,
        wrapped,
    ],
)
def test_a_report_that_does_not_open_to_its_registers_is_left_out(
    city: AttackedCity, forge: Forge
) -> None:
    """A corrupted meter gains nothing but that its own lane is not counted."""
    window = city.window()
    reports = city.reports(window)
    made = forge(city, city.day.meters[-1], window, reports[-1])
    city.assert_gains_nothing(city.built([*reports[:-1], made]), reports)
