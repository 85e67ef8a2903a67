"""DLMS pushes: what is right is read to the Wh, what is wrong names itself and is dropped."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from dlms_cosem.crc import CRCCCITT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gridveil.meters.dlms import PushKeys, PushReader, PushRules
from gridveil.meters.frames import MOST_BYTES, Pushes
from gridveil.meters.registers import Reading, parse_registers
from gridveil.protocol.errors import MalformedInput, Reason
from tests.support.pushes import (
    AIDON,
    AUTHENTICATION,
    ENCRYPTION,
    EXPORT,
    IMPORT,
    SERIAL,
    TITLE,
    array,
    ciphered,
    hdlc,
    listed,
    notification,
    number,
    obis,
    objects,
    octets,
    push,
    scaler_unit,
    stamp,
    structure,
    text,
    turns,
    wrapped,
)

AT = 1_767_225_600
REGISTERS = parse_registers([f"import_wh={IMPORT}", f"export_wh={EXPORT}"])
OSLO = ZoneInfo("Europe/Oslo")
KEYS = PushKeys(ENCRYPTION, AUTHENTICATION)
PLAIN = PushReader(REGISTERS, PushRules())
SECURE = PushReader(REGISTERS, PushRules(KEYS))
CANARY = 48_151_623
BOTH = {IMPORT: CANARY, EXPORT: 42}


def cut(*pieces: bytes) -> list[bytes | MalformedInput]:
    pushes = Pushes()
    return [found for piece in pieces for found in pushes.feed(piece)]


def read(apdu: bytes, reader: PushReader = PLAIN) -> Reading:
    found = reader.read(apdu, 1.5)
    assert found is not None
    return found


def fault(apdu: bytes, reader: PushReader = PLAIN) -> str:
    with pytest.raises(MalformedInput) as refused:
        reader.read(apdu)
    error = refused.value
    assert error.reason is Reason.READING_INVALID
    for secret in (str(CANARY), SERIAL.decode(), SERIAL.hex(), ENCRYPTION.hex()):
        assert secret not in str(error)
    assert error.__cause__ is None
    return error.metadata["fault"]


# Frames


@pytest.mark.parametrize("frame", [hdlc, wrapped])
def test_a_push_is_cut_out_of_a_stream(frame: Callable[[bytes], bytes]) -> None:
    first, second = push(AT, 1), push(AT + 10, 2)
    assert cut(frame(first) + frame(second)) == [first, second]


def test_frames_may_share_a_flag_and_come_in_segments() -> None:
    first, second = push(AT, 1), push(AT + 10, 2)
    shared = hdlc(first)[:-1] + hdlc(second, segments=3)
    assert cut(shared) == [first, second]


@given(
    st.integers(1, 60),
    st.binary(max_size=60).filter(
        lambda noise: b"\x7e" not in noise and not noise.startswith((b"\0\1", b"\0"))
    ),
    st.sampled_from([hdlc, wrapped]),
)
def test_pieces_of_any_size_after_any_noise_make_the_same_pushes(
    size: int, noise: bytes, frame: Callable[[bytes], bytes]
) -> None:
    data = frame(push(AT, 1)) + frame(push(AT + 10, 2))
    if frame is hdlc:
        data = noise + data
    found = cut(*(data[at : at + size] for at in range(0, len(data), size)))
    assert found == [push(AT, 1), push(AT + 10, 2)]


def test_a_wrong_checksum_names_itself_and_the_next_push_works() -> None:
    spoilt = bytearray(hdlc(push(AT, CANARY)))
    spoilt[60] ^= 1
    first, second = cut(bytes(spoilt) + hdlc(push(AT + 10, 5)))
    assert isinstance(first, MalformedInput)
    assert first.metadata == {"fault": "checksum"}
    assert "checksum" in str(first)
    assert isinstance(second, bytes)
    assert read(second).registers[IMPORT] == 5


@given(st.data())
def test_no_flipped_bit_of_a_frame_goes_unnoticed(data: st.DataObject) -> None:
    whole = bytearray(hdlc(push(AT, CANARY)))
    whole[data.draw(st.integers(1, len(whole) - 2))] ^= 1 << data.draw(st.integers(0, 7))
    assert push(AT, CANARY) not in cut(bytes(whole))


def test_a_header_whose_checksum_is_wrong_names_itself() -> None:
    spoilt = bytearray(segment(b"\xe6\xe7\x00" + push(AT, CANARY), more=False))
    spoilt[6] ^= 1
    spoilt[-3:-1] = CRCCCITT().calculate_for(bytes(spoilt[1:-3]))
    (error,) = cut(bytes(spoilt))
    assert isinstance(error, MalformedInput)
    assert error.metadata == {"fault": "checksum"}


def test_a_frame_that_is_cut_off_is_named_and_the_next_one_works() -> None:
    found = cut(hdlc(push(AT, 1))[:100] + hdlc(push(AT + 10, 2)) + hdlc(push(AT + 20, 3)))
    assert isinstance(found[0], MalformedInput)
    assert found[0].metadata == {"fault": "cut_off"}
    assert found[-2:] == [push(AT + 10, 2), push(AT + 20, 3)]


def test_a_push_whose_last_segment_never_came_is_named() -> None:
    half = hdlc(push(AT, 1), segments=2)
    half = half[: len(half) // 2 + 1]
    first, second = cut(half + hdlc(push(AT + 10, 2)))
    assert isinstance(first, MalformedInput)
    assert first.metadata == {"fault": "cut_off"}
    assert second == push(AT + 10, 2)


def segment(information: bytes, *, more: bool) -> bytes:
    content = (0xA000 | 0x800 * more | len(information) + 9).to_bytes(2, "big") + b"\x41\x21\x13"
    content += bytes(CRCCCITT().calculate_for(content)) + information
    return b"\x7e" + content + bytes(CRCCCITT().calculate_for(content)) + b"\x7e"


def test_segments_without_end_are_dropped_within_their_bound() -> None:
    pushes = Pushes()
    found = list(pushes.feed(segment(b"\xe6\xe7\x00" + bytes(1000), more=True)))
    fed = 1000
    while not found:
        found = list(pushes.feed(segment(b"\xff" * 1000, more=True)))
        fed += 1000
        assert fed <= MOST_BYTES + 1000
    assert fed > MOST_BYTES - 1000
    (error,) = found
    assert isinstance(error, MalformedInput)
    assert error.metadata == {"fault": "length"}
    assert list(pushes.feed(hdlc(push(AT, 3)))) == [push(AT, 3)]


@pytest.mark.parametrize("length", [0, MOST_BYTES + 1, 65_535])
def test_a_wrapper_that_is_empty_or_too_long_is_refused_before_it_is_kept(length: int) -> None:
    header = b"\x00\x01\x00\x01\x00\x01" + length.to_bytes(2, "big")
    first, *_, last = cut(header + b"\xff" * 50 + wrapped(push(AT, 3)))
    assert isinstance(first, MalformedInput)
    assert first.metadata == {"fault": "length"}
    assert last == push(AT, 3)


def test_frames_that_carry_nothing_are_passed_over() -> None:
    content = b"\xa0\x07\x41\x21\x93"
    ready = b"\x7e" + content + bytes(CRCCCITT().calculate_for(content)) + b"\x7e"
    assert cut(ready + hdlc(push(AT, 1))) == [push(AT, 1)]


def test_a_frame_without_the_header_of_a_meter_is_named() -> None:
    (error,) = cut(segment(b"\xe6\xe6\x00" + push(AT, 1), more=False))
    assert isinstance(error, MalformedInput)
    assert error.metadata == {"fault": "frame"}


@pytest.mark.parametrize("address", ["0021", "00000021", "02000221", "0201", "ff"])
def test_addresses_of_one_two_and_four_bytes_are_taken(address: str) -> None:
    information = b"\xe6\xe7\x00" + push(AT, 1)
    there = bytes.fromhex("41" + address)
    content = (0xA000 | len(information) + 7 + len(there)).to_bytes(2, "big") + there + b"\x10"
    content += bytes(CRCCCITT().calculate_for(content)) + information
    frame = b"\x7e" + content + bytes(CRCCCITT().calculate_for(content)) + b"\x7e"
    assert cut(frame) == [push(AT, 1)]


# Contents


def test_a_frame_that_a_meter_sent_is_read_to_the_wh() -> None:
    (apdu,) = cut(AIDON)
    assert isinstance(apdu, bytes)
    reactive = parse_registers([f"import_wh={IMPORT}", "reactive_varh=1-0:3.8.0"])
    reading = read(apdu, PushReader(reactive, PushRules(zone=ZoneInfo("Europe/Stockholm"))))
    assert reading.registers == {IMPORT: 10_049_926, "1-0:3.8.0": 6_614_347}
    assert reading.at == datetime(2019, 12, 16, 6, 59, 40, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    "body",
    [
        objects(stamp(AT), BOTH),
        listed(stamp(AT), BOTH),
        listed(stamp(AT), BOTH, itself=False),
    ],
)
def test_each_form_of_a_push_is_read_alike(body: bytes) -> None:
    reading = read(notification(body))
    assert (reading.at, reading.heard) == (AT, 1.5)
    assert reading.registers == BOTH
    assert reading.meter == SERIAL.hex()


def test_codes_and_values_in_turn_need_the_unit_to_be_given() -> None:
    registers = {IMPORT: 4_815_162, EXPORT: 7}
    push = notification(turns(stamp(AT), registers))
    assert fault(push) == "register"
    reading = read(push, PushReader(REGISTERS, PushRules(unit=10)))
    assert reading.registers == {IMPORT: 48_151_620, EXPORT: 70}


def test_a_reading_is_in_no_repr() -> None:
    assert str(CANARY) not in repr(read(push(AT, CANARY)))
    assert ENCRYPTION.hex() not in repr(KEYS)
    assert repr(ENCRYPTION) not in repr(KEYS)


@pytest.mark.parametrize(("scaler", "wh"), [(3, 123_000), (0, 123), (-1, 12), (-3, 0)])
def test_a_scaler_is_applied_and_what_is_finer_than_a_wh_rounded_down(scaler: int, wh: int) -> None:
    push = notification(objects(stamp(AT), {IMPORT: 123, EXPORT: 0}, scaler=scaler))
    assert read(push).registers[IMPORT] == wh


def test_a_register_of_a_past_period_is_not_the_register() -> None:
    past = structure([octets(bytes([1, 0, 1, 8, 0, 1])), number(3), scaler_unit(0, 30)])
    body = bytearray(objects(stamp(AT), BOTH))
    body[1] += 1
    assert read(notification(bytes(body) + past)).registers == BOTH


def test_two_clocks_that_differ_are_refused() -> None:
    body = bytearray(objects(stamp(AT), BOTH))
    body[1] += 1
    other = structure([obis("0-1:1.0.0"), octets(stamp(AT + 1))])
    assert fault(notification(bytes(body) + other)) == "time"
    same = structure([obis("0-1:1.0.0"), octets(stamp(AT))])
    assert read(notification(bytes(body) + same)).at == AT


def test_data_that_nest_without_end_are_refused_before_they_are_kept() -> None:
    with pytest.raises(MalformedInput, match="nested more than 8 deep"):
        PLAIN.read(notification(b"\x02\x01" * 5000 + b"\x00"))


def test_a_push_without_the_registers_is_no_fault() -> None:
    assert PLAIN.read(notification(objects(stamp(AT), {"1-0:2.7.0": 5}))) is None


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (objects(stamp(AT), {IMPORT: CANARY}), "register"),
        (objects(stamp(AT), BOTH, unit=27), "register"),
        (objects(stamp(AT), BOTH, scaler=12), "register"),
        (objects(stamp(AT), {IMPORT: 2**32 - 1, EXPORT: 0}), "register"),
        (array([structure([obis(IMPORT), text(b"48151623"), scaler_unit(0, 30)])]), "register"),
        (array([structure([obis(IMPORT), number(1)]), structure([obis(EXPORT)])]), "register"),
        (array([structure([obis(IMPORT), number(1), scaler_unit(0, 30)])] * 2), "register"),
        (array([structure([obis(IMPORT), number(1), number(2)])]), "data"),
        (array([structure([number(CANARY), obis(IMPORT)])]), "data"),
        (array([]), "data"),
        (number(CANARY), "data"),
        (objects(stamp(AT), BOTH)[:-1], "data"),
        (objects(stamp(AT), BOTH) + b"\x00", "data"),
        (structure([b"\x13\x00"]), "data"),
        (structure([b"\x63"]), "data"),
        (b"\x02\x01" * 20 + b"\x00", "data"),
        (b"\x01\x84\xff\xff\xff\xff" + b"\x00" * 200, "data"),
        (b"\x01\xff" + b"\xff" * 127, "data"),
        (structure([array([structure([number(3), obis(IMPORT), number(2)])])] * 3), "data"),
        (objects(None, BOTH), "time"),
        (objects(stamp(AT)[:11], BOTH), "time"),
        (objects(stamp(AT, offset=None), BOTH), "time"),
        (objects(b"\xff\xff" + stamp(AT)[2:], BOTH), "time"),
        (objects(stamp(AT)[:3] + b"\x20" + stamp(AT)[4:], BOTH), "time"),
        (objects(stamp(AT)[:2] + b"\x02\x1e" + stamp(AT)[4:], BOTH), "time"),
        (objects(stamp(AT)[:5] + b"\x18" + stamp(AT)[6:], BOTH), "time"),
        (objects(stamp(AT)[:7] + b"\xff" + stamp(AT)[8:], BOTH), "time"),
    ],
)
def test_a_push_that_is_not_as_the_standard_says_is_named_and_nothing_is_read(
    body: bytes, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert fault(notification(body)) == named
    assert caplog.text == ""


@pytest.mark.parametrize(
    "apdu",
    [
        b"",
        b"\x0f",
        b"\x0f\x00\x00\x00\x01",
        b"\x0f\x00\x00\x00\x01\x0c" + bytes(11),
        b"\x0f\x00\x00\x00\x01\x05" + bytes(20),
        b"\xc0\x01\xc1\x00",
    ],
)
def test_what_is_no_data_notification_is_named(apdu: bytes) -> None:
    assert fault(apdu) == "apdu"


@pytest.mark.parametrize("before", [b"", b"\x09"])
def test_without_a_clock_the_time_is_the_notifications(before: bytes) -> None:
    body = objects(None, BOTH)
    apdu = notification(body, stamp(AT))
    assert read(apdu[:5] + before + apdu[5:]).at == AT


@pytest.mark.parametrize("offset", [-720, -60, 0, 60, 330, 840])
def test_a_time_with_its_deviation_from_utc_is_that_moment(offset: int) -> None:
    assert read(notification(objects(stamp(AT, offset=offset), BOTH))).at == AT


@pytest.mark.parametrize(
    ("local", "status", "utc"),
    [
        ("2026-01-15T12:00:00", 0xFF, "2026-01-15T11:00"),
        ("2026-07-15T12:00:00", 0x00, "2026-07-15T10:00"),
        ("2026-10-25T02:30:00", 0x80, "2026-10-25T00:30"),
        ("2026-10-25T02:30:00", 0x00, "2026-10-25T01:30"),
    ],
)
def test_a_local_time_is_that_of_its_zone_and_the_hour_twice_that_of_its_summer_bit(
    local: str, status: int, utc: str
) -> None:
    reader = PushReader(REGISTERS, PushRules(zone=OSLO))
    reading = read(notification(objects(stamp(0, local=local, status=status), BOTH)), reader)
    assert reading.at == datetime.fromisoformat(utc).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize("local", ["2026-10-25T02:30:00", "2026-03-29T02:30:00"])
def test_a_local_time_that_is_not_one_moment_is_refused(local: str) -> None:
    reader = PushReader(REGISTERS, PushRules(zone=OSLO))
    assert fault(notification(objects(stamp(0, local=local, status=0xFF), BOTH)), reader) == "time"


def test_a_meter_that_names_itself_nowhere_is_one_meter_all_the_same() -> None:
    assert read(push(AT, 1, serial=None)).meter == read(push(AT, 2, serial=None)).meter


# Protection


@pytest.mark.parametrize("control", [0x30, 0x31])
def test_a_protected_push_is_read_with_its_keys_and_names_its_meter_and_counter(
    control: int,
) -> None:
    reading = read(ciphered(push(AT, CANARY, 42), 77, control=control), SECURE)
    assert reading.registers == BOTH
    assert (reading.meter, reading.counter) == (TITLE.hex(), 77)


def test_suite_2_has_keys_of_32_bytes() -> None:
    long = bytes(32), bytes(range(32))
    reader = PushReader(REGISTERS, PushRules(PushKeys(*long)))
    apdu = ciphered(push(AT, 5), 1, control=0x32, keys=long)
    assert read(apdu, reader).registers[IMPORT] == 5
    assert fault(apdu, SECURE) == "security"


def test_the_ciphered_example_of_dlms_cosem_is_opened() -> None:
    apdu = bytes.fromhex(
        "db082f19229199164103"
        "3b30000001e5025ce9d2271fd78be8c204211a916a9d7f587e0a7a814cad"
        "ea89e9593f01f92ea8c087b5bdfdefeab6becf282dfe49c08f5be6dc8400"
    )
    reader = PushReader(REGISTERS, PushRules(PushKeys(b"MYDUMMYGLOBALKEY", b"MYDUMMYGLOBALKEY")))
    # What it holds is no list of objects: it was opened.
    assert fault(apdu, reader) == "data"
    assert fault(apdu, SECURE) == "security"


@pytest.mark.parametrize(
    "apdu",
    [
        push(AT, CANARY),
        ciphered(push(AT, CANARY), 1, keys=(AUTHENTICATION, AUTHENTICATION)),
        ciphered(push(AT, CANARY), 1, keys=(ENCRYPTION, ENCRYPTION)),
        ciphered(push(AT, CANARY), 1, control=0x20),
        ciphered(push(AT, CANARY), 1, control=0x10),
        ciphered(push(AT, CANARY), 1, control=0xB0),
        ciphered(push(AT, CANARY), 1)[:-1],
        ciphered(push(AT, CANARY), 1) + b"\x00",
        ciphered(push(AT, CANARY), 1)[:11],
        b"\xdb",
        b"\xdb\x08",
        b"\xdb\x84\xff\xff\xff\xff",
    ],
)
def test_what_its_keys_have_not_protected_is_refused(apdu: bytes) -> None:
    assert fault(apdu, SECURE) == "security"


def test_a_protected_push_without_keys_is_refused() -> None:
    assert fault(ciphered(push(AT, CANARY), 1)) == "security"


@given(st.data())
def test_no_flipped_bit_of_a_protected_push_goes_unnoticed(data: st.DataObject) -> None:
    whole = bytearray(ciphered(push(AT, CANARY), 9))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(MalformedInput):
        SECURE.read(bytes(whole))


def test_keys_are_read_from_files_of_hexadecimal(tmp_path: Path) -> None:
    (tmp_path / "ek").write_text(ENCRYPTION.hex() + "\n")
    (tmp_path / "ak").write_text(AUTHENTICATION.hex())
    assert PushKeys.load(tmp_path / "ek", tmp_path / "ak") == KEYS
    (tmp_path / "ak").write_text("no key")
    with pytest.raises(MalformedInput, match="ak must be 16 bytes in hexadecimal") as refused:
        PushKeys.load(tmp_path / "ek", tmp_path / "ak")
    assert "no key" not in str(refused.value)


# Anything


@given(st.data())
@settings(max_examples=400)
def test_no_bytes_of_a_push_make_another_error_than_a_typed_one(data: st.DataObject) -> None:
    bodies = [objects(stamp(AT), BOTH), listed(stamp(AT), BOTH), turns(stamp(AT), BOTH)]
    spoilt = bytearray(notification(data.draw(st.sampled_from(bodies)), stamp(AT)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(spoilt)))
        spoilt[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    reader = PushReader(REGISTERS, PushRules(zone=OSLO, unit=1))
    with suppress(MalformedInput):
        reader.read(bytes(spoilt))


@given(st.binary(max_size=400))
@example(b"\x7e\xa0\x08\x00\x00\x00\x00\x00\x00\x7e")
@example(b"\x00\x01" * 20)
@example(b"\x7e" * 40)
def test_noise_is_no_push_and_is_not_kept(noise: bytes) -> None:
    pushes = Pushes()
    for found in pushes.feed(noise):
        if isinstance(found, bytes):
            with suppress(MalformedInput):
                assert PLAIN.read(found) is None
    assert len(pushes._buffer) <= len(noise)


def test_without_dlms_cosem_the_gateway_names_the_extra() -> None:
    program = """
import sys
sys.modules["dlms_cosem"] = None
from gridveil.meters.dlms import PushReader, PushRules
from gridveil.meters.registers import P1_REGISTERS
from gridveil.protocol.errors import MalformedInput
try:
    PushReader(P1_REGISTERS, PushRules())
except MalformedInput as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("CONFIG_INVALID: ")
    assert "gridveil[meters]" in run.stdout
