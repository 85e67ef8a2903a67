"""Files of interval values: what is right is read exactly, what is wrong names itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gridveil.meters.espi import read_espi
from gridveil.meters.meter_csv import read_csv
from gridveil.meters.nem12 import read_nem12
from gridveil.meters.slots import MICRO, Grade, MeterSlots, Slot
from gridveil.protocol.errors import MalformedInput, Reason
from tests.support.meter_files import (
    NMI,
    at,
    espi,
    espi_reading,
    espi_value,
    nem12,
    nem12_channel,
    nem12_day,
)

MEASURED, ESTIMATED, MISSING = Grade.MEASURED, Grade.ESTIMATED, Grade.MISSING
BERLIN = ZoneInfo("Europe/Berlin")
CANARY = "48151.623"
"""A value that no message may name."""

DAY = ["0.1"] * 96


def wh(slots: list[Slot]) -> list[float]:
    return [slot.micro / MICRO for slot in slots]


def refused(read: Callable[[bytes], list[MeterSlots]], data: bytes) -> MalformedInput:
    with pytest.raises(MalformedInput) as raised:
        read(data)
    error = raised.value
    assert error.reason is Reason.READING_INVALID
    assert CANARY not in str(error)
    assert error.__cause__ is None
    return error


# NEM12


def test_a_nem12_file_is_read_in_market_time_all_year() -> None:
    days = [nem12_day("20260101", DAY), nem12_day("20260701", [*DAY[:-1], "1.25"])]
    (meter,) = read_nem12(nem12(nem12_channel("E1", days)))
    slots = meter.channels["E1"]
    assert meter.name == NMI
    assert (slots[0].start, slots[96].start) == (at("2025-12-31T14:00"), at("2026-06-30T14:00"))
    assert {slot.seconds for slot in slots} == {900}
    assert wh(slots) == [100.0] * 191 + [1250.0]


@pytest.mark.parametrize(("minutes", "values"), [(5, 288), (15, 96), (30, 48)])
def test_nem12_days_have_as_many_values_as_their_interval_says(minutes: int, values: int) -> None:
    day = nem12_day("20260101", range(values))
    (meter,) = read_nem12(nem12(nem12_channel("E1", [day], minutes, "Wh")))
    assert wh(meter.channels["E1"]) == list(range(values))
    for wrong in (values - 1, values + 6):
        spoilt = nem12(nem12_channel("E1", [nem12_day("20260101", range(wrong))], minutes, "Wh"))
        assert refused(read_nem12, spoilt).metadata["line"] == "3"


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("Wh", 1), ("kWh", 1000), ("KWH", 1000), ("MWh", 10**6), ("kvarh", 1000), ("varh", 1)],
)
def test_nem12_units_are_energy_to_the_wh(unit: str, factor: int) -> None:
    day = nem12_day("20260101", ["2.5"] * 96)
    (meter,) = read_nem12(nem12(nem12_channel("Q1", [day], 15, unit)))
    assert wh(meter.channels["Q1"])[0] == 2.5 * factor


def test_nem12_channels_that_are_no_energy_are_passed_over() -> None:
    volts = nem12_channel("V1", [nem12_day("20260101", ["x"] * 96)], 15, "V")
    (meter,) = read_nem12(nem12(volts, nem12_channel("E1", [nem12_day("20260101", DAY)])))
    assert set(meter.channels) == {"E1"}


def test_nem12_channels_to_the_customer_are_import_and_from_it_export() -> None:
    day = [nem12_day("20260101", DAY)]
    channels = [nem12_channel(name, day) for name in ("E2", "B1", "E1", "Q1", "K1", "A1")]
    (meter,) = read_nem12(nem12(*channels))
    assert meter.registers == {"import_wh": ("E1", "E2"), "export_wh": ("B1",)}


def test_the_meters_of_a_nem12_file_are_told_apart() -> None:
    day = [nem12_day("20260101", DAY)]
    found = read_nem12(nem12(nem12_channel("E1", day), nem12_channel("E1", day, nmi="QAAA000002")))
    assert [meter.name for meter in found] == [NMI, "QAAA000002"]


@pytest.mark.parametrize(
    ("quality", "grade"),
    [("A", MEASURED), ("E52", ESTIMATED), ("F17", ESTIMATED), ("S14", ESTIMATED), ("N", MISSING)],
)
def test_nem12_qualities_say_what_a_value_is(quality: str, grade: Grade) -> None:
    (meter,) = read_nem12(nem12(nem12_channel("E1", [nem12_day("20260101", DAY, quality)])))
    assert {slot.grade for slot in meter.channels["E1"]} == {grade}


def test_varying_quality_is_that_of_the_400_records() -> None:
    events = ["1,20,A,,", "21,24,F14,76,", "25,48,A,,", "49,49,N,,", "50,96,S53,,a text"]
    (meter,) = read_nem12(nem12(nem12_channel("E1", [nem12_day("20260101", DAY, "V", events)])))
    grades = [slot.grade for slot in meter.channels["E1"]]
    wanted = [MEASURED] * 20 + [ESTIMATED] * 4 + [MEASURED] * 24 + [MISSING] + [ESTIMATED] * 47
    assert grades == wanted


def test_a_day_of_varying_quality_that_is_not_covered_is_refused() -> None:
    events = ["1,20,A,,", "22,96,A,,"]
    error = refused(
        read_nem12, nem12(nem12_channel("E1", [nem12_day("20260101", DAY, "V", events)]))
    )
    assert error.metadata["fault"] == "quality"


@pytest.mark.parametrize(
    "event", ["0,5,A", "5,4,A", "1,97,A", "1,5,V", "1,5,X", "1,5,E", "1,5", "a,b,A", "1"]
)
def test_a_400_record_that_is_none_is_refused(event: str) -> None:
    error = refused(
        read_nem12, nem12(nem12_channel("E1", [nem12_day("20260101", DAY, "V", [event])]))
    )
    assert error.metadata == {"fault": "quality", "line": "4"}


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("100,NEM12", "100,NEM13", "record"),
        ("100,NEM12", "200,NEM12", "record"),
        ("200,NEM1200001", "201,NEM1200001", "record"),
        ("200,NEM1200001", "200,nem12", "meter"),
        (",E1,E1,", ",E1,,", "meter"),
        (",kWh,15,", ",kWh,60,", "interval"),
        (",kWh,15,", ",kWh,,", "interval"),
        ("300,20260101", "300,20260231", "time"),
        ("300,20260101", "300,2026-01-01", "time"),
        (f",{CANARY},", ",,", "value"),
        (f",{CANARY},", ",-1,", "value"),
        (f",{CANARY},", ",NaN,", "value"),
        (f",{CANARY},", ",1e3,", "value"),
        (f",{CANARY},", ",0.1234567,", "value"),
        (",A,,,20260201", ",Q,,,20260201", "quality"),
        (",A,,,20260201", ",,,,20260201", "quality"),
        ("\r\n900\r\n", "\r\n", "cut_off"),
        ("\r\n900\r\n", "\r\n900\r\n300,1\r\n", "record"),
        ("300,20260101", '300,"2026', "bytes"),
    ],
)
def test_a_nem12_record_that_is_not_as_the_specification_says_is_named(
    old: str, new: str, named: str
) -> None:
    good = nem12(nem12_channel("E1", [nem12_day("20260101", [CANARY, *DAY[1:-1], CANARY])]))
    assert old in good.decode()
    error = refused(read_nem12, good.decode().replace(old, new, 1).encode())
    assert error.metadata["fault"] == named


# Green Button


def test_a_green_button_file_is_read_with_its_power_of_ten_and_direction() -> None:
    start = at("2026-03-29T00:00")
    blocks = [[espi_value(start, 250), espi_value(start + 900, 0)], [espi_value(start + 1800, 7)]]
    fed_in = espi_reading(
        2, [[espi_value(start, 12_345)]], flowDirection=19, powerOfTenMultiplier=-3
    )
    (meter,) = read_espi(espi(espi_reading(1, blocks, powerOfTenMultiplier=1), fed_in))
    assert meter.name == "7"
    assert meter.registers == {"import_wh": ("1-0:1.8.0",), "export_wh": ("1-0:2.8.0",)}
    assert wh(meter.channels["1-0:1.8.0"]) == [2500, 0, 70]
    assert wh(meter.channels["1-0:2.8.0"]) == [12.345]
    assert [slot.start - start for slot in meter.channels["1-0:1.8.0"]] == [0, 900, 1800]


@pytest.mark.parametrize(
    ("qualities", "grade"),
    [
        ([], MEASURED),
        ([0], MEASURED),
        ([17, 19], MEASURED),
        ([14], MEASURED),
        ([8], ESTIMATED),
        ([17, 7], ESTIMATED),
        ([10], ESTIMATED),
        ([99], ESTIMATED),
    ],
)
def test_green_button_qualities_say_what_a_value_is(qualities: list[int], grade: Grade) -> None:
    value = espi_value(at("2026-01-01T00:00"), 1, qualities=qualities)
    (meter,) = read_espi(espi(espi_reading(1, [[value]])))
    assert [slot.grade for slot in meter.channels["1-0:1.8.0"]] == [grade]


def test_a_value_without_a_quality_has_the_one_of_its_type() -> None:
    start = at("2026-01-01T00:00")
    values = [espi_value(start, 1), espi_value(start + 900, 1, qualities=[17])]
    (meter,) = read_espi(espi(espi_reading(1, [values], defaultQuality=8)))
    assert [slot.grade for slot in meter.channels["1-0:1.8.0"]] == [ESTIMATED, MEASURED]


@pytest.mark.parametrize(
    "other",
    [{"uom": 38}, {"accumulationBehaviour": 3}, {"commodity": 7}, {"flowDirection": 4}],
)
def test_reading_types_that_are_no_energy_of_intervals_are_passed_over(
    other: dict[str, int],
) -> None:
    start = at("2026-01-01T00:00")
    readings = [
        espi_reading(1, [[espi_value(start, 9)]], **other),
        espi_reading(2, [[espi_value(start, 1)]], uom=73),
    ]
    (meter,) = read_espi(espi(*readings))
    assert set(meter.channels) == {"1-0:3.8.0"}
    assert read_espi(espi(readings[0])) == []


BILLION_LAUGHS = (
    "<!DOCTYPE lolz [<!ENTITY a 'lol'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>"
    "<!ENTITY c '&b;&b;&b;&b;&b;&b;&b;&b;'>]>"
)


@pytest.mark.parametrize(
    "head",
    [
        BILLION_LAUGHS,
        "<!DOCTYPE x SYSTEM 'file:///etc/passwd'>",
        "<!DOCTYPE x [<!ENTITY e SYSTEM 'http://127.0.0.1:1/'>]>",
        "<!DOCTYPE x>",
    ],
)
def test_xml_with_a_document_type_is_not_read(head: str) -> None:
    error = refused(read_espi, espi(espi_reading(1, []), head=head))
    assert error.metadata == {"fault": "xml"}
    assert "not read" in str(error)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("</feed>", "", "xml"),
        ("feed", "fool", "xml"),
        ("UTF-8", "no-such-code", "xml"),
        ("<value>4815</value>", "", "value"),
        ("<value>4815</value>", "<value>1.5</value>", "value"),
        ("<value>4815</value>", "<value>4815</value><value>1</value>", "value"),
        ("<value>4815</value>", "<value>&#x661;</value>", "value"),
        ("<value>4815</value>", "<value>9999999999999999</value>", "value"),
        ("<powerOfTenMultiplier>0<", "<powerOfTenMultiplier>99<", "value"),
        ("<start>1767225600<", "<start>99999999999<", "time"),
        ("<duration>900</duration><start>17", "<duration>0</duration><start>17", "time"),
        ("timePeriod>", "timeout>", "time"),
        ("ReadingType/1'/><title", "ReadingType/3'/><title", "link"),
        ("MeterReading/1/IntervalBlock'/><title", "MeterReading/3/IntervalBlock'/><title", "link"),
        (
            "related' href='https://utility.example/espi/1_1/UsagePoint/7",
            "related' href='x",
            "link",
        ),
        ("<uom>72</uom>", "<uom>Wh</uom>", "xml"),
    ],
)
def test_a_green_button_file_that_is_not_as_the_standard_says_is_named(
    old: str, new: str, named: str
) -> None:
    good = espi(espi_reading(1, [[espi_value(1_767_225_600, 4815)]])).decode()
    assert old in good
    error = refused(read_espi, good.replace(old, new).encode())
    assert error.metadata["fault"] == named
    assert "4815" not in str(error)


def test_deep_xml_is_refused_before_it_is_kept() -> None:
    error = refused(read_espi, b"<feed>" + b"<a>" * 100_000)
    assert error.metadata == {"fault": "length"}


def test_one_entry_of_elements_without_end_is_refused_before_it_is_kept() -> None:
    feed = b"<feed xmlns='http://www.w3.org/2005/Atom'>" + b"<a/>" * 1_000_001
    assert refused(read_espi, feed).metadata == {"fault": "length"}


def test_a_block_of_two_meter_readings_is_nobodys() -> None:
    start = at("2026-01-01T00:00")
    readings = [
        espi_reading(n, [[espi_value(start, n)]], flowDirection=f) for n, f in [(1, 1), (2, 19)]
    ]
    both = readings[1].replace("MeterReading/2/IntervalBlock", "MeterReading/1/IntervalBlock")
    assert refused(read_espi, espi(readings[0], both)).metadata == {"fault": "link"}


@pytest.mark.parametrize(
    "channels",
    [
        [nem12_channel("E1", [nem12_day("20260101", [1] * 288)] * 1737, 5)],
        [
            nem12_channel("E1", [nem12_day("20260101", [1] * 48)], 30, nmi=f"NEM{n:07}")
            for n in range(1001)
        ],
    ],
)
def test_a_file_of_more_values_or_channels_than_are_kept_is_refused(
    channels: list[list[str]],
) -> None:
    assert refused(read_nem12, nem12(*channels)).metadata["fault"] == "length"


# CSV


def test_a_csv_file_is_read_by_its_header() -> None:
    text = (
        "timestamp,import_kwh,export_wh,reactive_kvarh,quality\n"
        "2026-01-01T00:00:00Z,0.25,0,0.001,measured\n"
        "2026-01-01T01:15:00+01:00,,5,1,\n"
        "1767227400,1,2,3,estimated\n"
        "1767228300,1,2,3,missing\n"
    )
    (meter,) = read_csv(text.encode(), "home", None, 900)
    assert meter.name == "home"
    assert {slot.grade for slot in meter.channels["import_wh"][2:3]} == {ESTIMATED}
    assert wh(meter.channels["import_wh"]) == [250, 0, 1000, 0]
    assert wh(meter.channels["reactive_varh"]) == [1, 1000, 3000, 0]
    assert [slot.grade for slot in meter.channels["import_wh"]] == [
        MEASURED,
        MISSING,
        ESTIMATED,
        MISSING,
    ]
    starts = [slot.start for slot in meter.channels["export_wh"]]
    assert starts == [1_767_225_600 + at * 900 for at in range(4)]


def local_hours(*hours: str) -> bytes:
    return "\n".join(["timestamp,import_wh", *(f"{hour},1" for hour in hours)]).encode()


def test_a_local_hour_that_comes_twice_is_told_by_its_order() -> None:
    hours = ["2026-10-25T01:00", "2026-10-25T02:00", "2026-10-25T02:00", "2026-10-25T03:00"]
    (meter,) = read_csv(local_hours(*hours), "home", BERLIN, 3600)
    starts = [slot.start for slot in meter.channels["import_wh"]]
    assert starts == [at("2026-10-24T23:00") + hour * 3600 for hour in range(4)]


@pytest.mark.parametrize(
    ("hours", "zone"),
    [
        (["2026-10-25T02:00"], BERLIN),
        (["2026-10-25T02:00"] * 3, BERLIN),
        (["2026-03-29T02:30"] * 2, BERLIN),
        (["2026-01-01T00:00"], None),
        (["yesterday"], BERLIN),
        (["2026-01-01T00:00:00.5Z"], BERLIN),
        (["9999-12-31T23:59:00-12:00"], BERLIN),
        (["0001-01-01T00:00:00+12:00"], BERLIN),
        (["0001-01-01T00:00:00"], BERLIN),
        (["9999-12-31T23:59:00"], BERLIN),
    ],
)
def test_a_time_that_is_not_one_moment_is_refused(hours: list[str], zone: ZoneInfo | None) -> None:
    error = refused(lambda data: read_csv(data, "home", zone, 3600), local_hours(*hours))
    assert error.metadata["fault"] == "time"


@pytest.mark.parametrize(
    ("header", "row", "named"),
    [
        ("time,import_wh", "1767225600,1", "register"),
        ("timestamp", "1767225600", "register"),
        ("timestamp,import", "1767225600,1", "register"),
        ("timestamp,import_wh,import_kwh", "1767225600,1,1", "register"),
        ("timestamp,quality", "1767225600,measured", "register"),
        ("timestamp,import_wh", "1767225600", "record"),
        ("timestamp,import_wh", "1767225600,1,2", "record"),
        ("timestamp,import_wh", f"1767225600,{CANARY}x", "value"),
        ("timestamp,import_wh", "1767225600,1_000", "value"),
        ("timestamp,import_wh,quality", "1767225600,1,fine", "quality"),
        ("timestamp,import_wh", '1767225600,"1', "bytes"),
        ("timestamp,import_wh", "1767225600,\xff", "value"),
    ],
)
def test_a_csv_file_that_is_not_as_described_is_named_by_line(
    header: str, row: str, named: str
) -> None:
    error = refused(lambda d: read_csv(d, "home", None, 900), f"{header}\n{row}\n".encode())
    assert error.metadata["fault"] == named
    assert error.metadata["line"] in {"1", "2", "3"}


# Any of them

READERS: dict[str, tuple[Callable[[bytes], list[MeterSlots]], bytes]] = {
    "nem12": (
        read_nem12,
        nem12(
            nem12_channel("E1", [nem12_day("20260101", range(48), "V", ["1,48,A,,"])], 30),
            nem12_channel("B1", [nem12_day("20260101", range(48), "S14")], 30),
        ),
    ),
    "espi": (
        read_espi,
        espi(
            espi_reading(1, [[espi_value(1_767_225_600, 5, qualities=[17])]]),
            espi_reading(2, [[espi_value(1_767_225_600, 5)]], flowDirection=19),
        ),
    ),
    "csv": (
        lambda data: read_csv(data, "home", BERLIN, 900),
        b"timestamp,import_kwh,quality\n2026-10-25T02:00,0.5,measured\n2026-10-25T02:00,1,\n",
    ),
}


@pytest.mark.parametrize("form", READERS)
@given(data=st.data())
@settings(max_examples=400)
def test_no_bytes_make_another_error_than_a_typed_one(form: str, data: st.DataObject) -> None:
    read, good = READERS[form]
    assert read(good)
    spoilt = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(spoilt) - 1))
        until = min(len(spoilt), place + data.draw(st.integers(0, 12)))
        digits = st.text("0123456789,.-:+TZ\r\n\"'<>/&; AEFNSV", max_size=12).map(str.encode)
        spoilt[place:until] = data.draw(digits | st.binary(max_size=6))
        if not spoilt:
            break
    found: list[MeterSlots] = []
    with suppress(MalformedInput):
        found = read(bytes(spoilt))
    for meter in found:
        for slots in meter.channels.values():
            assert all(slot.seconds > 0 and slot.start >= 0 for slot in slots)


@pytest.mark.parametrize("form", READERS)
@given(st.binary(max_size=300))
@example(b"")
@example(b"\xef\xbb\xbf")
@example(b"\x00" * 50)
@example(b"<?xml version='1.0' encoding='utf-16'?>")
def test_noise_is_no_file(form: str, noise: bytes) -> None:
    read, _ = READERS[form]
    with pytest.raises(MalformedInput) as raised:
        read(noise)
    assert raised.value.reason is Reason.READING_INVALID


@pytest.mark.parametrize(
    ("library", "module", "call"),
    [
        ("aemo_mdff_reader", "nem12", "read_nem12(b'')"),
        ("defusedxml", "espi", "read_espi(b'')"),
    ],
)
def test_without_its_library_a_format_names_the_extra(library: str, module: str, call: str) -> None:
    program = f"""
import sys
sys.modules["{library}"] = None
from gridveil.meters.{module} import *
from gridveil.protocol.errors import MalformedInput
try:
    {call}
except MalformedInput as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("CONFIG_INVALID: ")
    assert "gridveil[meters]" in run.stdout
