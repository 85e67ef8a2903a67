"""DLMS/COSEM pushes of made-up values, encoded by dlms-cosem, in the forms that meters have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta, timezone

from dlms_cosem import dlms_data
from dlms_cosem.dlms_data import (
    DoubleLongUnsignedData,
    EnumData,
    IntegerData,
    OctetStringData,
    UnsignedLongData,
    encode_variable_integer,
)
from dlms_cosem.hdlc.address import HdlcAddress
from dlms_cosem.hdlc.frames import UnnumberedInformationFrame
from dlms_cosem.protocol.wrappers import WrapperHeader, WrapperProtocolDataUnit
from dlms_cosem.security import SecurityControlField, encrypt
from dlms_cosem.time import datetime_to_bytes

ENCRYPTION, AUTHENTICATION = bytes(range(16)), bytes(range(0xD0, 0xE0))
TITLE = b"GRV\x00\x00\x00\x00\x01"
SERIAL = b"7359990000000001"

IMPORT, EXPORT = "1-0:1.8.0", "1-0:2.8.0"

AIDON = bytes.fromhex(
    "7ea2434108831385ebe6e7000f4000000000011b020209060000010000ff090c07e30c1001073b28ff"
    "8000ff020309060100010700ff060000046202020f00161b020309060100020700ff06000000000202"
    "0f00161b020309060100030700ff06000005e302020f00161d020309060100040700ff060000000002"
    "020f00161d0203090601001f0700ff10000002020fff1621020309060100330700ff10004b02020fff"
    "1621020309060100470700ff10000002020fff1621020309060100200700ff12090302020fff162302"
    "0309060100340700ff1209c302020fff1623020309060100480700ff12090402020fff162302030906"
    "0100150700ff060000000002020f00161b020309060100160700ff060000000002020f00161b020309"
    "060100170700ff060000000002020f00161d020309060100180700ff060000000002020f00161d0203"
    "09060100290700ff060000046202020f00161b0203090601002a0700ff060000000002020f00161b02"
    "03090601002b0700ff06000005e202020f00161d0203090601002c0700ff060000000002020f00161d"
    "0203090601003d0700ff060000000002020f00161b0203090601003e0700ff060000000002020f0016"
    "1b0203090601003f0700ff060000000002020f00161d020309060100400700ff060000000002020f00"
    "161d020309060100010800ff060099598602020f00161e020309060100020800ff060000000802020f"
    "00161e020309060100030800ff060064ed4b02020f001620020309060100040800ff06000000050202"
    "0f001620be407e"
)
"""A frame that an Aidon meter sent, as the examples of dlms-cosem publish it."""


def obis(code: str) -> bytes:
    """An octet string of a code."""
    a, _, rest = code.partition("-")
    b, _, cde = rest.partition(":")
    return octets(bytes([int(a), int(b), *(int(part) for part in cde.split(".")), 255]))


def octets(data: bytes) -> bytes:
    """An octet string."""
    return bytes(OctetStringData(data).to_bytes())


def text(data: bytes) -> bytes:
    """A visible string."""
    return bytes([10, len(data)]) + data


def number(value: int) -> bytes:
    """A double-long-unsigned."""
    return bytes(DoubleLongUnsignedData(value).to_bytes())


def scaler_unit(scaler: int, unit: int) -> bytes:
    """A structure of both."""
    return structure([IntegerData(scaler).to_bytes(), EnumData(unit).to_bytes()])


def structure(items: Iterable[bytes], tag: int = dlms_data.DataStructure.TAG) -> bytes:
    """A structure, or an array."""
    listed = list(items)
    return bytes([tag]) + bytes(encode_variable_integer(len(listed))) + b"".join(listed)


def array(items: Iterable[bytes]) -> bytes:
    """An array."""
    return structure(items, dlms_data.DataArray.TAG)


def stamp(at: int, *, offset: int | None = 60, local: str | None = None, status: int = 0) -> bytes:
    """A COSEM date-time: with its offset from UTC in minutes, or of a local time without."""
    if local is not None:
        moment = datetime.fromisoformat(local)
    else:
        moment = datetime.fromtimestamp(at, UTC)
        if offset is not None:
            moment = moment.astimezone(timezone(timedelta(minutes=offset)))
    return bytes(datetime_to_bytes(moment.replace(tzinfo=None)))[:9] + _deviation(
        None if local is not None else offset, status
    )


def _deviation(offset: int | None, status: int) -> bytes:
    deviation = -0x8000 if offset is None else -offset
    return deviation.to_bytes(2, "big", signed=True) + bytes([status])


def notification(body: bytes, time: bytes = b"") -> bytes:
    """A data-notification."""
    return b"\x0f\x40\x00\x00\x01" + bytes([len(time)]) + time + body


def objects(
    time: bytes | None,
    registers: Mapping[str, int],
    *,
    serial: bytes | None = SERIAL,
    scaler: int = 0,
    unit: int = 30,
) -> bytes:
    """A body of objects each with its code, scaler and unit, as of Aidon."""
    found = [structure([obis("1-1:0.2.129"), text(b"GRIDVEIL_V0001")])]
    if time is not None:
        found.append(structure([obis("0-0:1.0.0"), octets(time)]))
    if serial is not None:
        found.append(structure([obis("0-0:96.1.0"), text(serial)]))
    power = [obis("1-0:1.7.0"), number(1122), scaler_unit(0, 27)]
    found.append(structure(power))
    found += [
        structure([obis(code), number(value), scaler_unit(scaler, unit)])
        for code, value in registers.items()
    ]
    return array(found)


def turns(time: bytes, registers: Mapping[str, int], *, serial: bytes = SERIAL) -> bytes:
    """A body of codes and values in turn, after the list's name, as of Kamstrup."""
    found = [text(b"Gridveil_V0001"), obis("1-1:0.0.5"), text(serial)]
    found += [obis("0-1:1.0.0"), octets(time)]
    for code, value in registers.items():
        found += [obis(code), number(value)]
    return structure(found)


def listed(time: bytes, registers: Mapping[str, int], *, itself: bool = True) -> bytes:
    """A body that lists what follows, as of IDIS; the list may be its own first entry."""
    entries = [(8, "0-0:1.0.0", 2), (1, "0-0:42.0.0", 2)]
    values = [octets(time), octets(SERIAL)]
    for code, value in registers.items():
        entries += [(3, code, 2), (3, code, 3)]
        values += [number(value), scaler_unit(0, 30)]
    first = [(40, "0-0:25.9.0", 2)] if itself else []
    told = [_entry(*entry) for entry in [*first, *entries]]
    return structure([array(told), *values])


def _entry(kind: int, code: str, attribute: int) -> bytes:
    parts = UnsignedLongData(kind), IntegerData(attribute), UnsignedLongData(0)
    encoded = [bytes(part.to_bytes()) for part in parts]
    return structure([encoded[0], obis(code), *encoded[1:]])


def push(at: int, wh: int, fed: int = 0, *, serial: bytes | None = SERIAL) -> bytes:
    """A plain push of both registers."""
    return notification(objects(stamp(at), {IMPORT: wh, EXPORT: fed}, serial=serial))


def ciphered(
    apdu: bytes,
    counter: int,
    *,
    control: int = 0x30,
    title: bytes = TITLE,
    keys: tuple[bytes, bytes] = (ENCRYPTION, AUTHENTICATION),
) -> bytes:
    """An APDU under general-glo-ciphering."""
    field = SecurityControlField.from_bytes(bytes([control]))
    content = bytes([control]) + counter.to_bytes(4, "big")
    content += bytes(encrypt(field, title, counter, keys[0], apdu, keys[1]))
    return b"\xdb\x08" + title + bytes(encode_variable_integer(len(content))) + content


def hdlc(apdu: bytes, *, segments: int = 1) -> bytes:
    """Frames of HDLC, as dlms-cosem makes them."""
    information = b"\xe6\xe7\x00" + apdu
    size = -(-len(information) // segments)
    return b"".join(
        UnnumberedInformationFrame(
            HdlcAddress(0x20, None, "client"),
            HdlcAddress(0x10, None, "server"),
            information[at : at + size],
            segmented=at + size < len(information),
        ).to_bytes()
        for at in range(0, len(information), size)
    )


def wrapped(apdu: bytes) -> bytes:
    """An APDU as it comes by TCP."""
    return bytes(WrapperProtocolDataUnit(apdu, WrapperHeader(1, 1, len(apdu))).to_bytes())
