"""An aggregator that hands over true entries and another sum than theirs.

It has every honest report and no corrupted meter; all it can change are the lane ciphertexts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from gridveil.encryption import Encryptor
from gridveil.protocol.report import Report
from gridveil_services.rpc import Role
from tests.adversary.city import LANES, RELEASED, VICTIM_WH, AttackedCity
from tests.adversary.forging import (
    combined,
    encrypted,
    flipped,
    lifted_by,
    scaled,
    slots_of,
    sums_of,
    turned,
    with_sums,
    zero,
)
from tests.support.epochs import ckks_keys

Sums = dict[int, bytes]
Attack = Callable[[AttackedCity, Sequence[Report], Sums], Sums]
"""What becomes of the lanes' honest sums; the first report is the victim's."""


def composition(city: AttackedCity, reports: Sequence[Report], sums: Sums) -> Sums:
    """The victim's ciphertext and nothing but encryptions of zero in every lane."""
    victim, parameters = reports[0], city.parameters
    zeros = {lane: combined(parameters, *(zero(parameters) for _ in range(80))) for lane in sums}
    lane = city.lane(victim)
    return zeros | {lane: combined(parameters, zeros[lane], victim.ciphertext)}


def composition_in_one_lane(city: AttackedCity, reports: Sequence[Report], sums: Sums) -> Sums:
    """The victim's lane is the victim and zeros, the others are honest."""
    lane = city.lane(reports[0])
    return {lane: composition(city, reports, sums)[lane]}


def victim_replaced(city: AttackedCity, reports: Sequence[Report], sums: Sums) -> Sums:
    """The victim's ciphertext gives way to a guess: a pass would confirm it."""
    lane, parameters = city.lane(reports[0]), city.parameters
    guess = encrypted(parameters, slots_of(parameters, [VICTIM_WH, 0]))
    away = scaled(parameters, reports[0].ciphertext, -1)
    return {lane: combined(parameters, sums[lane], away, guess)}


def dropped(city: AttackedCity, reports: Sequence[Report], sums: Sums) -> Sums:
    """One ciphertext is left out, its entry stays."""
    lane = city.lane(reports[5])
    away = scaled(city.parameters, reports[5].ciphertext, -1)
    return {lane: combined(city.parameters, sums[lane], away)}


def doubled(city: AttackedCity, reports: Sequence[Report], sums: Sums) -> Sums:
    """One ciphertext is added twice, its entry is there once."""
    lane = city.lane(reports[5])
    return {lane: combined(city.parameters, sums[lane], reports[5].ciphertext)}


def moved_between_lanes(city: AttackedCity, reports: Sequence[Report], sums: Sums) -> Sums:
    """One ciphertext is added in another lane than its entry's; the city's sum stays right."""
    lane, parameters = city.lane(reports[0]), city.parameters
    other = (lane + 1) % LANES
    away = scaled(parameters, reports[0].ciphertext, -1)
    return {
        lane: combined(parameters, sums[lane], away),
        other: combined(parameters, sums[other], reports[0].ciphertext),
    }


def lanes_swapped(city: AttackedCity, reports: Sequence[Report], sums: Sums) -> Sums:
    """Each of two lanes has the other's sum."""
    return {0: sums[1], 1: sums[0]}


def times(factor: int) -> Attack:
    """Every lane's sum times an integer."""

    def attack(city: AttackedCity, reports: Sequence[Report], sums: Sums) -> Sums:
        return {lane: scaled(city.parameters, sum_, factor) for lane, sum_ in sums.items()}

    attack.__doc__ = f"Every lane's sum times {factor}."
    return attack


def halved(city: AttackedCity, reports: Sequence[Report], sums: Sums) -> Sums:
    """Every lane's sum divided by two, mod q."""
    half = pow(2, -1, city.parameters.policy.crypto.modulus)
    return times(half)(city, reports, sums)


def victim_scaled(city: AttackedCity, reports: Sequence[Report], sums: Sums) -> Sums:
    """The victim counts tenfold in a sum of otherwise honest reports."""
    lane, parameters = city.lane(reports[0]), city.parameters
    more = scaled(parameters, reports[0].ciphertext, 9)
    return {lane: combined(parameters, sums[lane], more)}


def self_made_key(city: AttackedCity, reports: Sequence[Report], sums: Sums) -> Sums:
    """A lane under a key pair of the attacker's own, of the same parameters."""
    policy = city.parameters.policy
    public, _ = ckks_keys(policy.parameter_set, b"the attacker's")
    own = Encryptor(policy.crypto, policy.layout.slots, public)
    return {0: own.encrypt(policy.layout.to_slots([VICTIM_WH, 0], 1))}


def one_report_under_a_self_made_key(
    city: AttackedCity, reports: Sequence[Report], sums: Sums
) -> Sums:
    """Encryptions under the right and under the attacker's key, added."""
    return {0: combined(city.parameters, sums[0], self_made_key(city, reports, sums)[0])}


def transparent(city: AttackedCity, reports: Sequence[Report], sums: Sums) -> Sums:
    """A lane that is no encryption: c1 is zero, and c0 says next to nothing in every slot."""
    little = city.parameters.policy.crypto.scale // 20
    return {0: lifted_by(city.parameters, bytes(len(sums[0])), little)}


def bit(number: int) -> Attack:
    """One bit of one lane's sum is another one."""

    def attack(city: AttackedCity, reports: Sequence[Report], sums: Sums) -> Sums:
        lane = city.lane(reports[0])
        return {lane: flipped(sums[lane], number % (8 * len(sums[lane])))}

    attack.__doc__ = f"Bit {number} of the victim's lane is flipped."
    return attack


def wrapped(city: AttackedCity, reports: Sequence[Report], sums: Sums) -> Sums:
    """Every slot is pushed once around the modulus, and the first one 7 further.

    q is all but 2^26 times the scale, so that all of it comes out within every bound.
    """
    parameters = city.parameters
    slots = slots_of(parameters, [7, 0])
    around = lifted_by(parameters, encrypted(parameters, slots), 2**26 * 2**24)
    return {0: combined(parameters, sums[0], around)}


def beyond_half_the_modulus(city: AttackedCity, reports: Sequence[Report], sums: Sums) -> Sums:
    """Every slot is so large that it comes out negative."""
    return {0: lifted_by(city.parameters, sums[0], city.parameters.policy.crypto.modulus // 2)}


ATTACKS: dict[str, Attack] = {
    "composition": composition,
    "composition_in_one_lane": composition_in_one_lane,
    "victim_replaced": victim_replaced,
    "victim_scaled": victim_scaled,
    "dropped": dropped,
    "doubled": doubled,
    "moved_between_lanes": moved_between_lanes,
    "lanes_swapped": lanes_swapped,
    "times_2": times(2),
    "times_3": times(3),
    "times_minus_1": times(-1),
    "times_0": times(0),
    "times_2_to_26": times(2**26),
    "halved": halved,
    "self_made_key": self_made_key,
    "one_report_under_a_self_made_key": one_report_under_a_self_made_key,
    "transparent": transparent,
    "first_bit": bit(0),
    "bit_in_c0": bit(64 * 77 + 30),
    "bit_in_c1": bit(64 * 1000 + 12),
    "last_residues_lowest_bit": bit(-64),
    "wrapped": wrapped,
    "beyond_half_the_modulus": beyond_half_the_modulus,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_sum_that_is_not_of_its_entries_is_left_out(city: AttackedCity, name: str) -> None:
    """The attacker gains nothing: the total is that of the other lanes, or there is none."""
    window = city.window()
    reports = city.reports(window)
    honest = city.built(reports)
    attacked = with_sums(honest, ATTACKS[name](city, reports, sums_of(honest)))
    assert attacked.digest != honest.digest
    city.assert_gains_nothing(attacked, reports)


def test_the_sums_of_another_window_open_nothing(city: AttackedCity) -> None:
    """Last window's sums below this window's entries gain nothing: the blindings differ."""
    before, window = city.window(), city.window()
    reports = city.reports(window)
    stale = sums_of(city.built(city.reports(before)))
    city.assert_gains_nothing(with_sums(city.built(reports), stale), reports)


@pytest.mark.parametrize("guess", [VICTIM_WH, VICTIM_WH + 1])
def test_a_guess_hidden_in_imaginary_parts_is_never_confirmed(
    city: AttackedCity, guess: int
) -> None:
    """A right and a wrong guess at the victim's reading end the same: its lane is left out.

    i * (victim - guess) is added. It leaves every real part as it is; if the guess is right it
    leaves the registers' slots wholly as they are and shows in the blinding's slots only. Were
    those not checked, a lane that goes through would say that the guess is right.
    """
    window = city.window()
    reports = city.reports(window)
    honest, parameters = city.built(reports), city.parameters
    lane = city.lane(reports[0])
    guessed = scaled(parameters, encrypted(parameters, slots_of(parameters, [guess, 0])), -1)
    payload = turned(parameters, combined(parameters, reports[0].ciphertext, guessed))
    sum_ = combined(parameters, sums_of(honest)[lane], payload)
    city.assert_gains_nothing(with_sums(honest, {lane: sum_}), reports)


@pytest.mark.parametrize("slot", [0, 8, 40, 63])
def test_a_lane_with_a_slot_between_two_integers_is_left_out(city: AttackedCity, slot: int) -> None:
    """A third of a unit rounds away, and would give the attacker a threshold to probe the key at.

    It gains nothing: no slot, of a register or of the blinding, is outside the tolerance's check.
    """
    window = city.window()
    reports = city.reports(window)
    honest, parameters = city.built(reports), city.parameters
    slots = [0.0] * parameters.policy.layout.slots
    slots[slot] = 0.33
    payload = encrypted(parameters, slots)
    sum_ = combined(parameters, sums_of(honest)[1], payload)
    city.assert_gains_nothing(with_sums(honest, {1: sum_}), reports)


def test_only_the_aggregator_may_hand_a_release_over(city: AttackedCity) -> None:
    """No other role gains the key-holder's ear, not with a release that is right in all parts."""
    window = city.window()
    release = city.built(city.reports(window))
    for role in set(Role) - {Role.AGGREGATOR}:
        answer = city.release_as(role, release)
        assert answer.receipt is None, RELEASED
        assert answer.reason == "ROLE_NOT_ALLOWED"
    assert city.events(window) == []
    city.assert_released(release, city.truth(window))
