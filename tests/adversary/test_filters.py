"""An aggregator that multiplies: weights, fractions, filters over slots, rotations, noise.

Everything that can be done to a ciphertext without its key is adding and multiplying by public
polynomials. In the subring Y = X^G that is a product, residue by residue; ``filtered`` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from gridveil.protocol.city import CityParameters
from gridveil.protocol.report import Report
from tests.adversary.city import VICTIM_WH, AttackedCity
from tests.adversary.forging import (
    WORD,
    combined,
    encrypted,
    scaled,
    slots_of,
    sums_of,
    turned,
    with_sums,
    zero,
)
from tests.vectors.reference import reverse


def filtered(parameters: CityParameters, ciphertext: bytes, polynomial: dict[int, int]) -> bytes:
    """A ciphertext times a polynomial in Y: exponents and their integer coefficients."""
    crypto, slots = parameters.policy.crypto, parameters.policy.layout.slots
    q, degree, block = crypto.modulus, crypto.degree, crypto.block(slots)
    bits = degree.bit_length() - 1
    factors = []
    for at in range(2 * slots):
        point = pow(crypto.root, block * (2 * reverse(at * block, bits) + 1), q)
        factors.append(sum(c * pow(point, power, q) for power, c in polynomial.items()) % q)
    residues = [int(residue) for residue in np.frombuffer(ciphertext, dtype=WORD)]
    c0 = [r * f % q for r, f in zip(residues, factors, strict=False)]
    c1 = [r * factors[at // block] % q for at, r in enumerate(residues[2 * slots :])]
    return np.array(c0 + c1, dtype=WORD).tobytes()


def test_a_filter_turns_slots_as_it_should(city: AttackedCity) -> None:
    """The control: times Y^P is times i, as the attack on imaginary parts computes it."""
    ciphertext = zero(city.parameters)
    slots = city.parameters.policy.layout.slots
    assert filtered(city.parameters, ciphertext, {slots: 1}) == turned(city.parameters, ciphertext)


Payload = Callable[[AttackedCity, Report], bytes]
"""What is added to the victim's lane, which is honest otherwise."""


def minus_guess(city: AttackedCity, victim: Report, guess: int = VICTIM_WH) -> bytes:
    """The victim's ciphertext minus a right guess at its reading: zero in the registers' slots."""
    guessed = encrypted(city.parameters, slots_of(city.parameters, [guess, 0]))
    return combined(city.parameters, victim.ciphertext, scaled(city.parameters, guessed, -1))


def filter_of(*coefficients: int) -> Payload:
    """A small polynomial times (victim - guess): zero wherever the guess is right."""

    def payload(city: AttackedCity, victim: Report) -> bytes:
        polynomial = dict(enumerate(coefficients))
        return filtered(city.parameters, minus_guess(city, victim), polynomial)

    return payload


def rotated(power: int) -> Payload:
    """The victim's report times a power of Y, beside itself."""
    return lambda city, victim: filtered(city.parameters, victim.ciphertext, {power: 1})


def fraction(divisor: int) -> Payload:
    """A part of the victim more: an integer mod q that is no integer in the slots."""

    def payload(city: AttackedCity, victim: Report) -> bytes:
        part = pow(divisor, -1, city.parameters.policy.crypto.modulus)
        return scaled(city.parameters, victim.ciphertext, part)

    return payload


def noise(bits: int) -> Payload:
    """An encryption of zero whose noise is as large as readings."""
    return lambda city, victim: scaled(city.parameters, zero(city.parameters), 2**bits)


def c1_of(change: Callable[[int, int, int], int]) -> Payload:
    """No encryption at all: c0 is zero, and c1 by a rule of place, residues and modulus."""

    def payload(city: AttackedCity, victim: Report) -> bytes:
        crypto, slots = city.parameters.policy.crypto, city.parameters.policy.layout.slots
        c1 = [change(at, crypto.degree, crypto.modulus) for at in range(crypto.degree)]
        return np.array([0] * 2 * slots + c1, dtype=WORD).tobytes()

    return payload


PAYLOADS: dict[str, Payload] = {
    "one_plus_y_times_guess": filter_of(1, 1),
    "one_minus_y_times_guess": filter_of(1, -1),
    "alternating_filter_times_guess": filter_of(1, 0, -1, 0, 1, 0, -1),
    "small_noise_filter_times_guess": filter_of(3, -2, 1, -4, 2),
    "rotated_by_one": rotated(1),
    "rotated_by_a_quarter": rotated(32),
    "rotated_by_a_half": rotated(64),
    "a_half_more": fraction(2),
    "a_third_more": fraction(3),
    "a_256th_more": fraction(256),
    "zero_times_2_to_12": noise(12),
    "zero_times_2_to_28": noise(28),
    "sparse_c1": c1_of(lambda at, degree, q: q // 2 if at == 7 else 0),
    "constant_c1": c1_of(lambda at, degree, q: 2**40),
    "half_of_c1_constant": c1_of(lambda at, degree, q: 2**40 if 2 * at < degree else 0),
    "alternating_c1": c1_of(lambda at, degree, q: q - 2**44 if at % 2 else 2**44),
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_what_is_multiplied_into_a_sum_is_never_released(city: AttackedCity, name: str) -> None:
    """The attacker gains nothing but that the lane did not open."""
    window = city.window()
    reports = city.reports(window)
    honest, parameters, lane = city.built(reports), city.parameters, city.lane(reports[0])
    payload = PAYLOADS[name](city, reports[0])
    sum_ = combined(parameters, sums_of(honest)[lane], payload)
    city.assert_gains_nothing(with_sums(honest, {lane: sum_}), reports)


Weigh = Callable[[int], int]
"""The integer that a report counts with, by its place; the victim's is 0."""

WEIGHTS: dict[str, Weigh] = {
    "powers_of_two": lambda at: 2 ** (at % 8),
    "victim_minus_the_others": lambda at: 1 if at == 0 else -1,
    "victim_and_its_lane_not_at_all": lambda at: 1 if at == 0 else 0,
    "every_second": lambda at: at % 2,
    "beyond_a_byte": lambda at: 256 if at == 0 else 1,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weighted_sums_open_nothing(city: AttackedCity, name: str) -> None:
    """Weights would read households as digits of the total; each counts once or the lane fails."""
    window = city.window()
    reports = city.reports(window)
    honest, weight = city.built(reports), WEIGHTS[name]
    weighted = with_sums(honest, weigh(city, reports, weight))
    failing = {city.lane(report) for at, report in enumerate(reports) if weight(at) != 1}
    city.assert_gains_nothing(weighted, reports, failing=failing)


def weigh(city: AttackedCity, reports: Sequence[Report], weight: Weigh) -> dict[int, bytes]:
    """The lanes' sums with every ciphertext times its weight, and a zero that hides which."""
    parts: dict[int, list[bytes]] = {}
    for at, report in enumerate(reports):
        part = scaled(city.parameters, report.ciphertext, weight(at))
        parts.setdefault(city.lane(report), [zero(city.parameters)]).append(part)
    return {lane: combined(city.parameters, *found) for lane, found in parts.items()}
