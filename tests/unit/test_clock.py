import pytest

from gridveil.clock import ScaledClock, SystemClock, make_clock
from gridveil.protocol.errors import MalformedInput, Reason


def test_without_options_time_is_the_machines() -> None:
    assert isinstance(make_clock(None, 1.0, development=False), SystemClock)


def test_a_scaled_clock_is_refused_outside_development_cities() -> None:
    with pytest.raises(MalformedInput, match="development") as refusal:
        make_clock("1000@2000", 60.0, development=False)
    assert refusal.value.reason is Reason.CONFIG_INVALID


@pytest.mark.parametrize("origin", ["", "1000", "a@b", "1@2@3", "nan@1", "1@inf"])
def test_an_origin_that_is_not_two_finite_times_is_refused(origin: str) -> None:
    with pytest.raises(MalformedInput, match="METERING@REAL"):
        make_clock(origin, 2.0, development=True)


@pytest.mark.parametrize("rate", [0.0, -1.0, 10_001.0, float("nan")])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(MalformedInput, match="--clock-rate"):
        make_clock("1000@2000", rate, development=True)


def test_metering_time_passes_rate_times_as_fast() -> None:
    clock = ScaledClock(origin=1_000.0, started=0.0, rate=50.0)
    assert clock.real(900.0) == 18.0
    assert clock.now() > 50.0 * 1.7e9
