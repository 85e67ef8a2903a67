"""Bounds, slot layouts, windows and lanes: the numbers that docs/protocol.md states."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridveil.protocol.city import (
    BATCH_BYTES,
    REPORT_OVERHEAD,
    CityParameters,
    Epoch,
    Register,
)
from gridveil.protocol.errors import GridveilError, MalformedInput, Reason
from gridveil.protocol.parameter_sets import (
    NOISE_SIGMAS,
    PARAMETER_SETS,
    SLOT_TOLERANCE,
    ParameterSet,
    parameter_set,
)
from gridveil.protocol.slots import GROUP_ORDER, REGISTER_MAX, SlotLayout
from gridveil.protocol.v1 import aggregator_pb2, report_pb2
from gridveil.protocol.windows import WindowRules, lane_count, lane_of
from tests.vectors.material import city

# set, slots, ciphertext bytes, meters by wrap, meters by noise, meters per lane
BOUNDS = [
    ("ckks-2048", 64, 17_408, 65_793, 19_112, 16_384),
    ("ckks-2048", 128, 18_432, 65_793, 7_496, 4_096),
    ("ckks-2048", 256, 20_480, 65_793, 2_751, 2_048),
    ("ckks-2048", 512, 24_576, 65_793, 939, 512),
    ("ckks-2048", 1024, 32_768, 65_793, 297, 256),
    ("ckks-4096", 64, 33_792, 1_052_688, 47_161_363, 1_048_576),
    ("ckks-4096", 128, 34_816, 1_052_688, 19_574_475, 1_048_576),
    ("ckks-4096", 256, 36_864, 1_052_688, 7_677_323, 1_048_576),
    ("ckks-4096", 512, 40_960, 1_052_688, 2_818_475, 1_048_576),
    ("ckks-4096", 1024, 49_152, 1_052_688, 962_040, 524_288),
    ("ckks-4096", 2048, 65_536, 1_052_688, 304_803, 262_144),
]
RULES = WindowRules(900, 300, 60)
START = 1_700_000_100
layouts = st.integers(1, 255).map(SlotLayout.for_registers)


@pytest.mark.parametrize("row", BOUNDS, ids=lambda row: f"{row[0]} {row[1]}")
def test_every_bound_is_the_documented_one(row: tuple[str, int, int, int, int, int]) -> None:
    name, slots, size, wrap, noise, lane = row
    crypto = parameter_set(name)
    assert crypto.ciphertext_bytes(slots) == size
    assert crypto.meters_by_wrap == wrap
    assert crypto.meters_by_noise(slots) == noise
    assert crypto.meters_per_lane(slots) == lane


@pytest.mark.parametrize("row", BOUNDS, ids=lambda row: f"{row[0]} {row[1]}")
def test_a_full_lane_neither_wraps_nor_drowns_in_noise(
    row: tuple[str, int, int, int, int, int],
) -> None:
    crypto, slots = parameter_set(row[0]), row[1]
    meters = crypto.meters_per_lane(slots)
    assert meters * 255 * 4 * crypto.scale <= crypto.modulus
    worst = crypto.slot_noise_std(slots) * crypto.worst_slot(slots) * math.sqrt(meters)
    assert NOISE_SIGMAS * worst <= SLOT_TOLERANCE


@pytest.mark.parametrize("bits", [(50, 2), (51, 1), (54,)])
def test_a_modulus_beyond_a_limit_of_128_bits_is_refused(bits: tuple[int, ...]) -> None:
    parameter_set("ckks-2048").check_security()
    with pytest.raises(MalformedInput, match="128 bits"):
        ParameterSet("wider", 2048, 1125899906826241, bits, 24).check_security()


def test_a_modulus_between_the_quantum_and_the_classical_limit_is_refused() -> None:
    with pytest.raises(MalformedInput, match="128 bits"):
        ParameterSet("wider", 4096, 1152921504606830593, (60, 42), 30).check_security()


def test_a_parameter_set_that_nobody_defined_is_refused() -> None:
    with pytest.raises(MalformedInput) as refused:
        parameter_set("ckks-8192")
    assert refused.value.reason is Reason.CONFIG_INVALID


@given(layouts)
def test_slots_are_the_smallest_power_of_two_that_leaves_32_bytes_of_blinding(
    layout: SlotLayout,
) -> None:
    slots, registers = layout.slots, layout.registers
    assert slots & (slots - 1) == 0
    assert layout.blinding_bytes == slots - 4 * registers >= 32
    assert slots == 64 or slots // 2 - 4 * registers < 32


@given(layouts, st.data())
def test_slot_sums_give_back_the_sums_of_registers_and_blindings(
    layout: SlotLayout, data: st.DataObject
) -> None:
    value = st.integers(0, REGISTER_MAX)
    reading = st.tuples(
        st.lists(value, min_size=layout.registers, max_size=layout.registers),
        st.integers(0, 256**layout.blinding_bytes - 1),
    )
    readings = data.draw(st.lists(reading, min_size=1, max_size=3))
    slots = [layout.to_slots(values, blinding) for values, blinding in readings]
    assert {len(one) for one in slots} == {layout.slots}
    sums = [sum(column) for column in zip(*slots, strict=True)]
    totals, blinding = layout.from_slot_sums(sums)
    assert totals == [sum(column) for column in zip(*(v for v, _ in readings), strict=True)]
    assert blinding == sum(b for _, b in readings) % GROUP_ORDER


@pytest.mark.parametrize("registers", [-1, 0, 256])
def test_a_city_without_or_with_too_many_registers_is_refused(registers: int) -> None:
    with pytest.raises(MalformedInput):
        SlotLayout.for_registers(registers)


@pytest.mark.parametrize("values", [[1], [1, 2, 3], [-1, 0], [0, 2**32]])
def test_readings_that_do_not_fit_the_registers_are_refused(values: list[int]) -> None:
    with pytest.raises(MalformedInput) as refused:
        SlotLayout.for_registers(2).to_slots(values, 0)
    assert refused.value.reason is Reason.READING_INVALID


def test_blindings_are_fresh_and_use_all_their_bytes() -> None:
    layout = SlotLayout.for_registers(4)
    drawn = {layout.draw_blinding() for _ in range(200)}
    assert len(drawn) == 200
    assert max(drawn).bit_length() > 8 * layout.blinding_bytes - 8


@pytest.mark.parametrize(("name", "most"), [("ckks-2048", 248), ("ckks-4096", 255)])
def test_a_city_has_as_many_registers_as_its_ring_has_slots_for(name: str, most: int) -> None:
    policy = replace(city(name).parameters.policy, batch_limit=1)
    registers = tuple(Register(f"r{number}", "Wh", 1) for number in range(255))
    fits = replace(policy, registers=registers[:most])
    assert fits.layout.slots <= policy.crypto.degree // 2
    if most < 255:
        with pytest.raises(MalformedInput, match="registers"):
            replace(policy, registers=registers[: most + 1])


@pytest.mark.parametrize("name", PARAMETER_SETS)
def test_a_batch_of_the_most_reports_stays_within_its_limit(name: str) -> None:
    policy = city(name).parameters.policy
    size = policy.crypto.ciphertext_bytes(policy.layout.slots)
    report = report_pb2.Report(
        parameters_digest=bytes(32),
        window_start=2**53 - 900,
        meter_id=bytes(16),
        flags=2**32 - 1,
        commitment_hash=bytes(32),
        sealed_commitment=bytes(48),
        ciphertext=bytes(size),
        signature=bytes(64),
    )
    batch = aggregator_pb2.SubmitReportsRequest(
        reports=[report] * policy.most_reports_in_a_batch
    ).ByteSize()
    assert batch <= policy.most_reports_in_a_batch * (size + REPORT_OVERHEAD) <= BATCH_BYTES
    assert report.ByteSize() <= 17_700 or name != "ckks-2048"
    with pytest.raises(MalformedInput, match="batch_limit"):
        replace(policy, batch_limit=policy.most_reports_in_a_batch + 1)


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (START + 839.9, Reason.WINDOW_TOO_EARLY),
        (START + 840, None),
        (START + 900, None),
        (START + 1199.9, None),
        (START + 1200, Reason.WINDOW_CLOSED),
        (START + 10**6, Reason.WINDOW_CLOSED),
        (0, Reason.WINDOW_TOO_EARLY),
    ],
)
def test_reports_are_taken_from_the_leeway_to_the_end_of_grace(
    now: float, reason: Reason | None
) -> None:
    found = None
    try:
        RULES.check_open(START, now)
    except GridveilError as error:
        found = error.reason
    assert found is reason


@pytest.mark.parametrize("start", [0, -900, START + 1, 2**53, 2**60 * 900])
def test_only_a_multiple_of_the_window_length_starts_a_window(start: int) -> None:
    RULES.check_aligned(START)
    with pytest.raises(MalformedInput) as refused:
        RULES.check_aligned(start)
    assert refused.value.reason is Reason.WINDOW_MISALIGNED


@given(st.floats(START, START + 10**7), st.integers(60, 86_400))
def test_every_time_lies_in_exactly_one_window(now: float, length: int) -> None:
    rules = WindowRules(length, 300, 30)
    start = rules.start_at(now)
    assert start <= now < rules.end(start)
    rules.check_aligned(start)


@pytest.mark.parametrize("moved", [(1, 0), (0, 1), (450, 900)])
def test_an_epoch_starts_and_ends_with_a_window(moved: tuple[int, int]) -> None:
    parameters = city("ckks-2048").parameters
    epoch: Epoch = parameters.epoch
    first, end = epoch.first_window + moved[0], epoch.end_window + moved[1]
    with pytest.raises(MalformedInput, match="epoch"):
        CityParameters(parameters.policy, replace(epoch, first_window=first, end_window=end))


@pytest.mark.parametrize(
    ("enrolled", "lanes"),
    [
        (1, 1),
        (99, 1),
        (100, 1),
        (101, 2),
        (250, 3),
        (1_000, 10),
        (1_600, 16),
        (10_000, 16),
        (100_000, 16),
        (245_760, 16),
        (245_761, 17),
        (1_000_000, 66),
    ],
)
def test_lanes_grow_with_the_roster_as_documented(enrolled: int, lanes: int) -> None:
    assert lane_count(enrolled, parameter_set("ckks-2048"), 64) == lanes


@given(st.integers(1, 10**7), st.sampled_from(BOUNDS))
def test_a_lane_stays_eight_sigma_below_its_bound(
    enrolled: int, row: tuple[str, int, int, int, int, int]
) -> None:
    crypto, slots = parameter_set(row[0]), row[1]
    lanes = lane_count(enrolled, crypto, slots)
    mean = enrolled / lanes
    assert mean + 8 * math.sqrt(mean * (1 - 1 / lanes)) <= crypto.meters_per_lane(slots)
    if lanes > 1:
        assert mean >= 50


def test_meters_fall_evenly_and_anew_into_the_lanes_of_every_window() -> None:
    epoch, meters = bytes(16), [number.to_bytes(16, "big") for number in range(8_000)]
    lanes = [lane_of(epoch, START, meter, 16) for meter in meters]
    counts = Counter(lanes)
    assert sorted(counts) == list(range(16))
    assert max(abs(count - 500) for count in counts.values()) < 6 * math.sqrt(500)
    moved = sum(
        lane != lane_of(epoch, START + 900, meter, 16)
        for lane, meter in zip(lanes, meters, strict=True)
    )
    assert abs(moved - 7_500) < 6 * math.sqrt(8_000 * 15 / 256)


@given(st.binary(min_size=16, max_size=16), st.integers(1, 10_000))
def test_every_meter_has_a_lane_below_the_number_of_lanes(meter: bytes, lanes: int) -> None:
    assert 0 <= lane_of(bytes(16), START, meter, lanes) < lanes
