"""P1 telegrams: what is right is read to the Wh, what is wrong names itself and is dropped."""

from __future__ import annotations

import logging
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridveil.meters.p1 import MOST_BYTES, TelegramReader, Telegrams
from gridveil.meters.registers import P1_REGISTERS, parse_registers
from gridveil.protocol.errors import MalformedInput, Reason
from tests.support.telegrams import SERIAL, energy, lines, signed, telegram

AT = 1_767_225_600
READER = TelegramReader(P1_REGISTERS)
CANARY = 48_151_623
"""A register that no message may name, in Wh; also as kWh."""


def cut(*pieces: bytes) -> list[str | MalformedInput]:
    telegrams = Telegrams()
    return [found for piece in pieces for found in telegrams.feed(piece)]


def read(data: bytes) -> dict[str, int]:
    (found,) = cut(data)
    assert isinstance(found, str)
    return dict(READER.read(found).registers)


def fault(data: bytes) -> MalformedInput:
    (found,) = cut(data)
    assert isinstance(found, str)
    with pytest.raises(MalformedInput) as refused:
        READER.read(found)
    error = refused.value
    assert error.reason is Reason.READING_INVALID
    for secret in (str(CANARY), "48151.623", SERIAL):
        assert secret not in str(error)
    assert error.__cause__ is None
    return error


def changed(old: str, new: str, wh: int = CANARY) -> bytes:
    """A telegram with a right CRC over a line that is wrong."""
    body = "\n".join(lines(AT, energy(wh)))
    assert old in body
    return signed(body.replace(old, new).split("\n"))


def test_a_telegram_is_read_to_the_wh() -> None:
    (found,) = cut(telegram(AT, 123_456_789, 42))
    assert isinstance(found, str)
    reading = READER.read(found, heard=1.5)
    assert (reading.at, reading.meter, reading.heard) == (AT, SERIAL, 1.5)
    assert reading.registers == energy(123_456_789, 42)


def test_a_reading_is_in_no_repr() -> None:
    (found,) = cut(telegram(AT, CANARY))
    assert isinstance(found, str)
    assert str(CANARY - 100_000) not in repr(READER.read(found))


def test_reactive_energy_and_single_registers_are_read_by_their_codes() -> None:
    registers = parse_registers(["import_wh=1-0:1.8.0", "reactive_varh=1-0:3.8.0"])
    (found,) = cut(signed([*lines(AT, {"1-0:1.8.0": 7_001}), "1-0:3.8.0(000000.125*kvarh)"]))
    assert isinstance(found, str)
    read = TelegramReader(registers).read(found).registers
    assert read == {"1-0:1.8.0": 7_001, "1-0:3.8.0": 125}


def test_a_wrong_checksum_names_itself_and_the_next_telegram_works() -> None:
    spoilt = telegram(AT, CANARY).replace(b"48051.623", b"48051.624")
    first, second = cut(spoilt + telegram(AT + 10, 5))
    assert isinstance(first, str)
    assert isinstance(second, str)
    with pytest.raises(MalformedInput) as refused:
        READER.read(first)
    assert refused.value.metadata == {"fault": "checksum"}
    assert "checksum" in str(refused.value)
    assert READER.read(second).registers == energy(5)


@pytest.mark.parametrize("end", [b"!\r\n", b"!12\r\n", b"!zzzz\r\n", b"!12345\r\n"])
def test_a_telegram_without_a_checksum_is_refused(end: bytes) -> None:
    body = telegram(AT, CANARY)[:-7]
    assert fault(body + end).metadata["fault"] == "checksum"


@given(st.data())
def test_no_flipped_bit_goes_unnoticed(data: st.DataObject) -> None:
    whole = bytearray(telegram(AT, CANARY))
    place = data.draw(st.integers(1, len(whole) - 3))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    for found in cut(bytes(whole)):
        if isinstance(found, str):
            with pytest.raises(MalformedInput):
                READER.read(found)


@given(st.integers(1, 60), st.binary(max_size=60))
def test_pieces_of_any_size_after_any_noise_make_the_same_telegrams(
    size: int, noise: bytes
) -> None:
    data = noise + b"\n" + telegram(AT, 1) + telegram(AT + 10, 2)
    found = cut(*(data[at : at + size] for at in range(0, len(data), size)))
    whole = [one for one in found if isinstance(one, str)]
    assert [READER.read(one).at for one in whole[-2:]] == [AT, AT + 10]


def test_a_stream_that_is_joined_in_the_midst_begins_with_the_next_telegram() -> None:
    (found,) = cut(telegram(AT, 1)[100:] + telegram(AT + 10, 2))
    assert isinstance(found, str)
    assert READER.read(found).at == AT + 10


def test_a_telegram_that_is_cut_off_is_named() -> None:
    first, second = cut(telegram(AT, 1)[:200] + b"\r\n" + telegram(AT + 10, 2))
    assert isinstance(first, MalformedInput)
    assert first.metadata == {"fault": "cut_off"}
    assert isinstance(second, str)


@pytest.mark.parametrize("flood", [b"x" * 100, b"0-0:96.13.0(303132)\r\n"])
def test_a_telegram_without_end_is_dropped_within_its_bound(flood: bytes) -> None:
    telegrams = Telegrams()
    found = list(telegrams.feed(b"/ISK5\r\n"))
    fed = 0
    while not found:
        found = list(telegrams.feed(flood))
        fed += len(flood)
    assert MOST_BYTES - 200 < fed <= MOST_BYTES + 200
    (error,) = found
    assert isinstance(error, MalformedInput)
    assert error.metadata == {"fault": "length"}
    *_, good = telegrams.feed(b"\r\n" + telegram(AT, 3))
    assert isinstance(good, str)
    assert READER.read(good).registers == energy(3)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("1-0:1.8.1(", "1-0:1.8.9(", "register"),
        ("1-0:2.8.2(000000.000*kWh)", "1-0:1.8.1(000000.000*kWh)", "register"),
        ("(048051.623*kWh)", "(048051.623*m3)", "register"),
        ("(048051.623*kWh)", "(048051.623)", "register"),
        ("(048051.623*kWh)", "()", "register"),
        ("(048051.623*kWh)", "(-48051.623*kWh)", "register"),
        ("(048051.623*kWh)", "(NaN*kWh)", "register"),
        ("(048051.623*kWh)", "(1e9*kWh)", "register"),
        ("(048051.623*kWh)", "(048051.6234*kWh)", "register"),
        ("(048051.623*kWh)", "(9048051.623*kWh)", "register"),
        ("(048051.623*kWh)", "(048051.623*kWh)(1)", "register"),
        (f"0-0:96.1.1({SERIAL})", "0-0:96.1.1()", "meter"),
        ("0-0:96.1.1", "0-0:96.1.2", "meter"),
        ("0-0:1.0.0", "0-0:1.0.1", "time"),
    ],
)
def test_a_line_that_is_not_as_the_standard_says_is_named_and_nothing_is_read(
    old: str, new: str, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert fault(changed(old, new)).metadata == {"fault": named}
    assert caplog.text == ""


def test_lines_that_are_not_asked_for_may_say_anything() -> None:
    assert read(changed("1-0:99.97.0()", "1-0:99.97.0(77)(what)(ever)")) == energy(CANARY)
    assert read(changed("(00012.345*m3)", "(none*m3)")) == energy(CANARY)


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("260115120000W", "2026-01-15T11:00"),
        ("260715120000S", "2026-07-15T10:00"),
        ("261025023000S", "2026-10-25T00:30"),
        ("261025023000W", "2026-10-25T01:30"),
        ("260329015959W", "2026-03-29T00:59:59"),
        ("260329030000S", "2026-03-29T01:00"),
    ],
)
def test_the_hour_that_comes_twice_is_told_by_its_letter(text: str, utc: str) -> None:
    (found,) = cut(telegram(AT, 1, time=text))
    assert isinstance(found, str)
    expected = datetime.fromisoformat(utc).replace(tzinfo=UTC)
    assert READER.read(found).at == expected.timestamp()


@pytest.mark.parametrize(
    "text",
    [
        "260115120000",
        "260115120000X",
        "260115120000S",
        "260715120000W",
        "260329023000W",
        "260329023000S",
        "260230120000W",
        "260115250000W",
        "",
    ],
)
def test_a_time_that_there_is_not_is_refused(text: str) -> None:
    assert fault(telegram(AT, CANARY, time=text)).metadata == {"fault": "time"}


def test_without_dsmr_parser_the_gateway_names_the_extra() -> None:
    program = """
import sys
sys.modules["dsmr_parser"] = None
import gridveil.meters.gateway
from gridveil.meters.p1 import TelegramReader
from gridveil.meters.registers import P1_REGISTERS
from gridveil.protocol.errors import MalformedInput
try:
    TelegramReader(P1_REGISTERS)
except MalformedInput as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("CONFIG_INVALID: ")
    assert "gridveil[meters]" in run.stdout
