"""A built report holds exactly the reading, sealed for the key-holder alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridveil.meter_identity import MeterKeys
from gridveil.protocol.city import CityPolicy, Register
from gridveil.protocol.errors import GridveilError, MalformedInput, Reason
from gridveil.protocol.report import parse_report
from gridveil.reporting import ReportBuilder, check_values, signed_reading
from tests.support.epochs import CityKeys, city_keys
from tests.support.reports import WINDOW, city_policy

BOUND = 200_000
FOUR = tuple(Register(name, "Wh", BOUND) for name in ("import_wh", "export_wh", "gas", "heat"))
KEYS = MeterKeys.create()


@pytest.fixture(scope="module")
def city() -> CityKeys:
    return city_keys()


@pytest.mark.parametrize("reading", [(0, 0), (412, 0), (0, 1), (BOUND, BOUND)])
def test_the_report_opens_to_the_reading(city: CityKeys, reading: tuple[int, int]) -> None:
    values = dict(zip(("import_wh", "export_wh"), reading, strict=True))
    report = ReportBuilder(city.parameters, KEYS).build(WINDOW, values)
    opened, _ = city.open_report(report, KEYS.member)
    assert opened == list(reading)
    assert parse_report(report.to_message()) == report


@pytest.mark.parametrize(
    "policy",
    [
        city_policy(registers=FOUR),
        city_policy(registers=tuple(Register(f"r{n}", "Wh", BOUND) for n in range(12))),
        city_policy(parameter_set="ckks-4096", batch_limit=64),
    ],
    ids=["four registers", "twelve registers", "ckks-4096"],
)
def test_every_shape_of_city_opens_to_the_reading(policy: CityPolicy) -> None:
    keys = city_keys(policy)
    values = {name: 1000 + at for at, name in enumerate(policy.register_names)}
    report = ReportBuilder(keys.parameters, KEYS).build(WINDOW, values)
    opened, _ = keys.open_report(report, KEYS.member)
    assert opened == list(values.values())


def test_each_build_has_its_own_blinding_commitment_and_encryption(city: CityKeys) -> None:
    builder = ReportBuilder(city.parameters, KEYS)
    built = [builder.build(WINDOW, signed_reading(5)) for _ in range(3)]
    assert len({report.claim.commitment_hash for report in built}) == 3
    assert len({report.ciphertext for report in built}) == 3
    assert len({city.open_report(report, KEYS.member)[1] for report in built}) == 3


def test_a_window_of_another_epoch_is_not_encrypted(city: CityKeys) -> None:
    builder = ReportBuilder(city.parameters, KEYS)
    with pytest.raises(GridveilError) as refused:
        builder.build(city.parameters.epoch.end_window, signed_reading(5))
    assert refused.value.reason is Reason.KEY_EPOCH


@given(wh=st.integers(-BOUND, BOUND))
def test_a_signed_reading_is_split_and_loses_nothing(wh: int) -> None:
    values = signed_reading(wh)
    assert values["import_wh"] - values["export_wh"] == wh
    assert min(values.values()) == 0
    assert check_values(city_policy(), values) == (max(wh, 0), max(-wh, 0))


class Whole(int):
    """An int that is not quite one."""


@pytest.mark.parametrize(
    "value",
    [None, True, False, 1.0, float("nan"), float("inf"), "1", b"1", Whole(1), 1 + 0j, [1]],
)
def test_what_is_no_integer_is_refused_by_register(value: Any) -> None:
    with pytest.raises(MalformedInput) as refused:
        check_values(city_policy(), {"import_wh": 1, "export_wh": value})
    assert refused.value.reason is Reason.READING_INVALID
    assert refused.value.metadata == {"register": "export_wh"}


@given(value=st.integers().filter(lambda v: not 0 <= v <= BOUND))
def test_what_is_out_of_bounds_is_refused_without_being_shown(value: int) -> None:
    with pytest.raises(MalformedInput) as refused:
        check_values(city_policy(), {"import_wh": value, "export_wh": 0})
    assert refused.value.reason is Reason.READING_INVALID
    assert refused.value.metadata == {"register": "import_wh"}
    assert str(value) not in refused.value.message.replace(f"0 and {BOUND}", "")


@given(
    values=st.dictionaries(
        st.sampled_from(["import_wh", "export_wh", "gas", "IMPORT_WH", ""]),
        st.integers(0, BOUND),
    ).filter(lambda values: values.keys() != {"import_wh", "export_wh"})
)
def test_exactly_the_citys_registers_are_taken(values: dict[str, int]) -> None:
    with pytest.raises(MalformedInput) as refused:
        check_values(city_policy(), values)
    assert refused.value.reason is Reason.READING_INVALID


def test_a_wrong_reading_is_refused_before_anything_else(city: CityKeys) -> None:
    builder = ReportBuilder(city.parameters, KEYS)
    with pytest.raises(MalformedInput) as refused:
        builder.build(WINDOW + 1, {"import_wh": -1, "export_wh": 0})
    assert refused.value.reason is Reason.READING_INVALID


def test_without_tenseal_the_meter_imports_and_building_names_the_extra() -> None:
    program = """
import sys
sys.modules["tenseal"] = None
import gridveil.meter
from gridveil.protocol.errors import MalformedInput
from gridveil.reporting import _encryptor
try:
    _encryptor("ckks-2048", 64, b"")
except MalformedInput as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("CONFIG_INVALID: ")
    assert "gridveil[meter]" in run.stdout
