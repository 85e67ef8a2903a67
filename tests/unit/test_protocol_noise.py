"""What noise costs, how large it is, and what a day has left: integers that everybody agrees on."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridveil.protocol.city import CityPolicy, Register
from gridveil.protocol.errors import MalformedInput
from gridveil.protocol.layout import Reader
from gridveil.protocol.noise import (
    Mechanism,
    Noise,
    NoiseClaim,
    NoisePolicy,
    Spent,
    day_of,
    loss_ppm,
    read_policy,
    satisfies,
)
from tests.support.reports import city_policy

LAPLACE, GAUSSIAN = Mechanism.LAPLACE, Mechanism.GAUSSIAN
MILLION = 1_000_000


def policy(mechanism: Mechanism, window: int, day: int) -> NoisePolicy:
    return NoisePolicy(Noise(mechanism, window), day)


def spend(policies: list[NoisePolicy]) -> tuple[Spent, list[bool]]:
    """Claim one window after another, and say which of them were affordable."""
    spent, afforded = Spent(), []
    for chosen in policies:
        claim = spent.claim(chosen)
        spent = spent.plus(claim)
        afforded.append(not claim.is_over_budget)
    return spent, afforded


@pytest.mark.parametrize(
    ("noise", "bound", "registers", "scale"),
    [
        (Noise(LAPLACE, MILLION), 200_000, 1, 200_000.0),
        (Noise(LAPLACE, 500_000), 200_000, 2, 800_000.0),
        (Noise(GAUSSIAN, 500_000), 200_000, 1, 200_000.0),
        (Noise(GAUSSIAN, 125_000), 200_000, 2, 565_685.424949238),
    ],
)
def test_the_scale_follows_from_bound_registers_and_loss(
    noise: Noise, bound: int, registers: int, scale: float
) -> None:
    assert noise.scale(bound, registers) == pytest.approx(scale, rel=1e-12)


@given(
    st.sampled_from([LAPLACE, GAUSSIAN]),
    st.integers(1, 2**32 - 1),
    st.integers(1, 2**32 - 1),
    st.integers(1, 255),
)
def test_all_registers_together_cost_the_loss(
    mechanism: Mechanism, loss: int, bound: int, registers: int
) -> None:
    scale = Noise(mechanism, loss).scale(bound, registers)
    each = bound / scale if mechanism is LAPLACE else (bound / scale) ** 2 / 2
    assert registers * each == pytest.approx(loss / MILLION, rel=1e-9)


def test_the_deviation_of_discrete_laplace_is_that_of_its_distribution() -> None:
    noise = Noise(LAPLACE, 2 * MILLION)
    ratio = math.exp(-1 / noise.scale(5, 1))
    weights = [(k, ratio ** abs(k)) for k in range(-400, 401)]
    variance = sum(k * k * w for k, w in weights) / sum(w for _, w in weights)
    assert noise.deviation(5, 1) == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert Noise(LAPLACE, 1).deviation(200_000, 2) == pytest.approx(math.sqrt(2) * 4e11)


def test_noise_that_a_total_has_no_room_for_is_no_policy() -> None:
    registers = (Register("water_l", "l", 2**32 - 1),)
    for mechanism, least in ((LAPLACE, 123), (GAUSSIAN, 1)):
        city_policy(registers=registers, noise=policy(mechanism, least, MILLION))
    with pytest.raises(MalformedInput, match="noise"):
        city_policy(registers=registers, noise=policy(LAPLACE, 122, MILLION))
    many = tuple(Register(f"r{at}", "l", 2**32 - 1) for at in range(64))
    with pytest.raises(MalformedInput, match="noise"):
        city_policy(registers=many, batch_limit=1, noise=policy(LAPLACE, 7_000, MILLION))


@pytest.mark.parametrize(
    ("mechanism", "window", "day"),
    [
        (LAPLACE, 0, 1),
        (LAPLACE, 2, 1),
        (GAUSSIAN, 1, 2**32),
        (LAPLACE, 2**32, 2**32),
        (LAPLACE, -1, 1),
        (Mechanism.NONE, 1, 1),
    ],
)
def test_losses_out_of_range_are_no_policy(mechanism: Mechanism, window: int, day: int) -> None:
    with pytest.raises(MalformedInput):
        policy(mechanism, window, day)


@given(
    st.one_of(
        st.none(),
        st.builds(
            lambda mechanism, losses: policy(mechanism, min(losses), max(losses)),
            st.sampled_from([LAPLACE, GAUSSIAN]),
            st.tuples(st.integers(100_000, 2**32 - 1), st.integers(100_000, 2**32 - 1)),
        ),
    )
)
def test_a_policy_reads_back_from_the_city_parameters(noise: NoisePolicy | None) -> None:
    written = city_policy(noise=noise)
    reader = Reader(written.encode(), "policy")
    assert CityPolicy.read(reader) == written
    reader.end()


@pytest.mark.parametrize(
    "data", [b"\3", b"\1\0\0\0\0\1\0\0\0", b"\2\2\0\0\0\1\0\0\0", b"\1\1", b""]
)
def test_bytes_that_are_no_policy_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedInput):
        read_policy(Reader(data, "policy"))


@given(st.floats(0, 4_000))
def test_a_loss_in_millionths_is_never_more_than_was_asked_for(loss: float) -> None:
    found = loss_ppm(loss)
    assert 0 <= loss - found / MILLION < 1.01e-6 or found / MILLION == pytest.approx(loss, abs=1e-9)


def test_decimal_losses_are_taken_as_they_are_written() -> None:
    for tenths in range(1, 1000):
        assert loss_ppm(tenths / 10) == 100_000 * tenths
    for loss in (math.nan, math.inf):
        with pytest.raises(MalformedInput):
            loss_ppm(loss)


def test_of_two_policies_the_stricter_loss_holds_and_of_two_mechanisms_the_own() -> None:
    one, other = policy(LAPLACE, 5, 90), policy(LAPLACE, 7, 60)
    assert one.stricter(other) == other.stricter(one) == policy(LAPLACE, 5, 60)
    assert one.stricter(None) == one
    assert one.stricter(policy(GAUSSIAN, 1, 1)) == one


def test_more_noise_than_demanded_satisfies_and_less_or_another_kind_does_not() -> None:
    demanded = Noise(LAPLACE, 500)
    assert satisfies(Noise(LAPLACE, 500), demanded)
    assert satisfies(Noise(LAPLACE, 499), demanded)
    assert not satisfies(Noise(GAUSSIAN, 1), None)
    assert satisfies(None, None)
    assert not satisfies(Noise(LAPLACE, 501), demanded)
    assert not satisfies(Noise(GAUSSIAN, 1), demanded)
    assert not satisfies(None, demanded)


@given(st.integers(1, 10**6), st.integers(0, 120), st.sampled_from([LAPLACE, GAUSSIAN]))
def test_a_day_affords_as_many_windows_as_its_budget_holds(
    loss: int, windows: int, mechanism: Mechanism
) -> None:
    chosen = policy(mechanism, loss, max(loss, windows * loss + loss // 2))
    _, afforded = spend([chosen] * 130)
    assert sum(afforded) == max(1, windows)
    assert afforded == sorted(afforded, reverse=True)


def test_a_window_that_was_not_affordable_spends_nothing() -> None:
    spent, afforded = spend([policy(LAPLACE, 30, 100), policy(LAPLACE, 80, 100)])
    assert afforded == [True, False]
    assert spent.laplace_ppm == 30
    assert spent.affords(policy(LAPLACE, 70, 100))
    assert not spent.affords(policy(LAPLACE, 71, 100))


@given(st.lists(st.integers(1, 3 * MILLION), max_size=40), st.integers(1, MILLION))
def test_laplace_windows_count_half_their_square_as_rho(losses: list[int], rho: int) -> None:
    spent = Spent()
    for loss in losses:
        spent = spent.plus(Noise(LAPLACE, loss))
    as_rho = sum(Fraction(loss, MILLION) ** 2 / 2 for loss in losses) + Fraction(rho, MILLION)
    whole = math.ceil(as_rho * MILLION)
    assert spent.affords(policy(GAUSSIAN, rho, max(rho, whole)))
    if losses and whole - 1 >= rho:
        assert not spent.affords(policy(GAUSSIAN, rho, whole - 1))


def test_after_a_gaussian_window_no_budget_in_epsilon_has_room() -> None:
    spent = Spent().plus(Noise(GAUSSIAN, 1))
    assert not spent.affords(policy(LAPLACE, 1, 2**32 - 1))


@pytest.mark.parametrize(
    ("mechanism", "loss"), [(0, 1), (3, 1), (1, 2**32), (-1, 0), (1, -1), (2**31 - 1, 0)]
)
def test_a_claim_of_no_lawful_noise_is_refused(mechanism: int, loss: int) -> None:
    with pytest.raises(MalformedInput):
        NoiseClaim.read(mechanism, loss)


def test_a_claim_says_exact_noisy_or_over_budget() -> None:
    assert NoiseClaim.read(0, 0).noise is None
    assert not NoiseClaim.read(0, 0).is_over_budget
    assert NoiseClaim.read(2, 7).noise == Noise(GAUSSIAN, 7)
    assert NoiseClaim.read(1, 0).is_over_budget
    assert NoiseClaim.read(1, 0).noise is None


def test_a_window_belongs_to_the_utc_day_that_it_starts_in() -> None:
    midnight = 20_000 * 86_400
    assert day_of(midnight) == 20_000
    assert day_of(midnight - 900) == 19_999
    assert day_of(midnight + 86_399) == 20_000


def test_the_table_for_choosing_a_loss_is_computed() -> None:
    """docs/operations.md: two registers of 6,000 Wh, 125 Wh a meter, 96 windows a day."""
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
    rows = re.findall(r"^\| (laplace|gaussian) \| ([\d.]+) \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) == 8
    for name, loss, rest in rows:
        deviation = Noise(Mechanism[name.upper()], loss_ppm(float(loss))).deviation(6_000, 2)
        shares = [100 * deviation / (125 * meters) for meters in (10**3, 10**4, 10**5, 10**6)]
        day = round(96 * float(loss), 6)
        epsilon = day + 2 * math.sqrt(day * math.log(1e6))
        cost = f"epsilon {day:g}" if name == "laplace" else f"rho {day:g}, epsilon {epsilon:.1f}"
        shown = [share_text(share) for share in shares]
        assert rest.split(" | ") == [f"{deviation:,.0f}", *shown, cost]


def share_text(percent: float) -> str:
    digits = 0 if percent >= 100 else 1 if percent >= 1 else 2
    return f"{percent:.{digits}f}%"
