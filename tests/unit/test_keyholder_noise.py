"""Noise as OpenDP draws it: what it costs, how it is distributed, and that it stays what it was."""

from __future__ import annotations

import math
import secrets
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

from gridveil.protocol.commitment import Generators, add_points
from gridveil.protocol.errors import GridveilError, IntegrityLost, InternalFault, Reason
from gridveil.protocol.noise import Mechanism, Noise
from gridveil.protocol.release import ReleaseHeader
from gridveil.protocol.slots import GROUP_ORDER
from gridveil_services.keyholder import noise as drawing
from gridveil_services.keyholder.at_rest import AtRest
from gridveil_services.keyholder.noise import DrawnNoise, draw
from gridveil_services.keyholder.noise_pin import NoisePins
from gridveil_services.keyholder.spool import SpooledRelease, SpoolFolder

LAPLACE, GAUSSIAN = Mechanism.LAPLACE, Mechanism.GAUSSIAN
MILLION = 1_000_000
CITY, EPOCH, DIGEST = bytes(16), bytes([1]) * 16, bytes([2]) * 32
WINDOW = 1_700_000_100
BOUNDS = (200_000, 50_000)
DRAWS = 4_000
SIGMAS = 6.5
"""A mean of independent draws is farther off than this with a chance below 1e-10."""


def probability(mechanism: Mechanism, scale: float, value: int) -> float:
    """Of a discrete Laplace or Gaussian variable, by the formulas of the papers."""
    if mechanism is LAPLACE:
        ratio = math.exp(-1 / scale)
        return (1 - ratio) / (1 + ratio) * ratio ** abs(value)
    weights = sum(math.exp(-(k**2) / (2 * scale**2)) for k in range(-200, 201))
    return math.exp(-(value**2) / (2 * scale**2)) / weights


@pytest.mark.parametrize(("mechanism", "loss"), [(LAPLACE, 2 * MILLION), (GAUSSIAN, 2 * MILLION)])
@pytest.mark.parametrize("bound", [3, 8])
def test_draws_are_distributed_as_the_papers_say(
    mechanism: Mechanism, loss: int, bound: int
) -> None:
    """Chi-square over the values: below 1e-9 by chance, and never with half or twice the scale."""
    noise = Noise(mechanism, loss)
    scale = noise.scale(bound, 1)
    found = Counter(draw(noise, [bound]).values[0] for _ in range(DRAWS))
    tails = [1 - sum(probability(mechanism, scale, k) for k in range(-e, e + 1)) for e in range(60)]
    edge = max(e for e, tail in enumerate(tails) if DRAWS * tail >= 8)
    assert statistic(found, mechanism, scale, edge) < bound_of_chi_square(2 * edge + 1)
    for wrong in (scale / 2, scale * 2):
        assert statistic(found, mechanism, wrong, edge) > bound_of_chi_square(2 * edge + 1)


def statistic(found: Counter[int], mechanism: Mechanism, scale: float, edge: int) -> float:
    expected = {k: DRAWS * probability(mechanism, scale, k) for k in range(-edge, edge + 1)}
    chi = sum((found[k] - e) ** 2 / e for k, e in expected.items())
    beyond = DRAWS - sum(expected.values())
    outside = DRAWS - sum(found[k] for k in expected)
    return chi + (outside - beyond) ** 2 / max(beyond, 1e-9)


def bound_of_chi_square(freedom: int) -> float:
    """Exceeded with a chance below 1e-9 (Laurent, Massart, Annals of Statistics 2000, lemma 1)."""
    x = math.log(1e9)
    return freedom + 2 * math.sqrt(freedom * x) + 2 * x


@pytest.mark.parametrize(("mechanism", "kurtosis"), [(LAPLACE, 6.0), (GAUSSIAN, 3.0)])
def test_noise_of_a_real_size_has_its_mean_and_deviation(
    mechanism: Mechanism, kurtosis: float
) -> None:
    noise = Noise(mechanism, 500_000)
    drawn = [draw(noise, BOUNDS).values for _ in range(DRAWS)]
    for register, bound in enumerate(BOUNDS):
        deviation = noise.deviation(bound, len(BOUNDS))
        values = [each[register] for each in drawn]
        mean, square = sum(values) / DRAWS, sum(v * v for v in values) / DRAWS
        assert abs(mean) < SIGMAS * deviation / math.sqrt(DRAWS)
        assert abs(square / deviation**2 - 1) < 2 * SIGMAS * math.sqrt((kurtosis - 1) / DRAWS)


def test_registers_and_draws_are_independent() -> None:
    noise = Noise(LAPLACE, 500_000)
    drawn = [draw(noise, [200_000, 200_000]).values for _ in range(DRAWS)]
    scale = noise.deviation(200_000, 2)
    pairs = [*drawn, *((a, b) for (a, _), (b, _) in pairwise(drawn))]
    correlation = sum(a / scale * (b / scale) for a, b in pairs) / len(pairs)
    assert abs(correlation) < 2 * SIGMAS / math.sqrt(DRAWS)


@pytest.mark.parametrize("mechanism", [LAPLACE, GAUSSIAN])
def test_what_opendp_says_it_costs_is_never_more_than_the_share(mechanism: Mechanism) -> None:
    source = secrets.SystemRandom()
    for _ in range(300):
        registers, loss = source.randint(1, 9), source.randint(1_000, 5 * MILLION)
        bounds = [source.randint(1, 300_000) for _ in range(registers)]
        costs = [
            measurement.map(bound)
            for measurement, bound in zip(
                drawing._measurements(Noise(mechanism, loss), bounds), bounds, strict=True
            )
        ]
        share = Fraction(loss, MILLION * registers)
        assert all(Fraction(cost) <= share for cost in costs)
        assert all(Fraction(cost) >= share * (1 - Fraction(1, 10**12)) for cost in costs)


def test_noise_that_costs_more_than_its_share_is_not_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with a scale that is wrong by a billionth."""
    right = Noise.scale
    monkeypatch.setattr(Noise, "scale", lambda *given: right(*given) * (1 - 1e-9))
    with pytest.raises(InternalFault) as refused:
        draw(Noise(LAPLACE, MILLION), BOUNDS)
    assert refused.value.reason is Reason.INTERNAL


def test_noise_larger_than_a_total_has_room_for_is_not_drawn() -> None:
    """The policy refuses such bounds; a draw beyond 2^51 is refused all the same."""
    with pytest.raises(InternalFault):
        draw(Noise(LAPLACE, 1), [2**32 - 1] * 64)


def test_the_commitment_to_noise_adds_up_with_those_of_meters() -> None:
    generators = Generators.derive(CITY, EPOCH, WINDOW, ["a", "b"])
    noise = DrawnNoise(Noise(LAPLACE, 1), (-5, -(2**51) + 1), GROUP_ORDER - 3)
    meters = generators.commit([7, 11], 9)
    both = add_points([meters, noise.added(generators).commitment])
    assert both == generators.commit([2, 12 - 2**51], 6)


def test_nothing_is_shown_of_noise_in_a_text() -> None:
    drawn = draw(Noise(LAPLACE, 500_000), BOUNDS)
    assert repr(drawn) == "DrawnNoise()"


# Pinned.


@pytest.fixture
def at_rest() -> AtRest:
    return AtRest(bytes(32), CITY)


@pytest.fixture
def release(tmp_path: Path) -> SpooledRelease:
    header = ReleaseHeader(CITY, bytes(32), WINDOW, 1, 1, 100)
    return SpoolFolder(tmp_path / "spool").create(header, DIGEST).complete([])


NOISE = Noise(GAUSSIAN, 125_000)


def test_noise_is_drawn_once_and_read_back_ever_after(
    at_rest: AtRest, release: SpooledRelease
) -> None:
    drawn = pins(at_rest).take(release, NOISE, EPOCH, BOUNDS)
    for _ in range(3):
        assert pins(at_rest).take(release, NOISE, EPOCH, BOUNDS) == drawn
    assert drawn.noise == NOISE
    assert len(drawn.values) == 2


def pins(at_rest: AtRest) -> NoisePins:
    """Pins of epochs that all have the same key."""
    return NoisePins(lambda _epoch_id: at_rest)


def test_pinned_noise_lies_sealed(at_rest: AtRest, release: SpooledRelease) -> None:
    drawn = pins(at_rest).take(release, NOISE, EPOCH, BOUNDS)
    lying = release.noise_file.read_bytes()
    for value in (*drawn.values, drawn.blinding):
        for size in (4, 8, 32):
            assert (value % 256**size).to_bytes(size, "little") not in lying
    assert release.noise_file.stat().st_mode & 0o777 == 0o600


def test_no_changed_byte_of_a_pin_is_taken_for_noise(
    at_rest: AtRest, release: SpooledRelease
) -> None:
    pins(at_rest).take(release, NOISE, EPOCH, BOUNDS)
    right = release.noise_file.read_bytes()
    for at in range(len(right)):
        release.noise_file.write_bytes(right[:at] + bytes([right[at] ^ 1]) + right[at + 1 :])
        assert_damaged(pins(at_rest), release)
    for wrong in (b"", right[:-1], right + b"\0"):
        release.noise_file.write_bytes(wrong)
        assert_damaged(pins(at_rest), release)


def assert_damaged(
    pins: NoisePins, release: SpooledRelease, noise: Noise = NOISE, epoch_id: bytes = EPOCH
) -> None:
    with pytest.raises(GridveilError) as refused:
        pins.take(release, noise, epoch_id, BOUNDS)
    assert isinstance(refused.value, IntegrityLost)
    assert refused.value.reason is Reason.PARTIAL_CORRUPT


def test_a_pin_is_of_one_release_epoch_key_and_loss(
    at_rest: AtRest, release: SpooledRelease, tmp_path: Path
) -> None:
    pins(at_rest).take(release, NOISE, EPOCH, BOUNDS)
    sealed = release.noise_file.read_bytes()
    assert_damaged(pins(at_rest), release, Noise(GAUSSIAN, 124_999))
    assert_damaged(pins(at_rest), release, Noise(LAPLACE, 125_000))
    assert_damaged(pins(at_rest), release, epoch_id=bytes(16))
    assert_damaged(pins(AtRest(bytes([1]) * 32, CITY)), release)
    header = ReleaseHeader(CITY, bytes(32), WINDOW + 900, 1, 1, 100)
    other = SpoolFolder(tmp_path / "other").create(header, DIGEST).complete([])
    other.noise_file.write_bytes(sealed)
    assert_damaged(pins(at_rest), other)


def test_a_pin_is_overwritten_before_it_is_removed(
    at_rest: AtRest, release: SpooledRelease
) -> None:
    pins(at_rest).take(release, NOISE, EPOCH, BOUNDS)
    sealed = release.noise_file.read_bytes()
    second_name = release.folder.parent.parent / "link"
    second_name.hardlink_to(release.noise_file)
    SpoolFolder(release.folder.parent).delete(WINDOW)
    assert not release.folder.exists()
    left = second_name.read_bytes()
    assert len(left) == len(sealed)
    assert sum(a == b for a, b in zip(left, sealed, strict=True)) < len(sealed) / 4
