"""DSMR P1 telegrams: bytes of a stream in, checked readings out (P1 companion standard 5.0.2).

A telegram begins with a line of ``/``, ends with ``!`` and four hexadecimal digits, its CRC, and
comes every second or every ten. What is not one whole telegram is a fault that names itself and
is dropped; the next telegram is read as if nothing had been. dsmr-parser reads the lines that are
asked for, and no others.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from gridveil.meters.registers import MODULUS, Reading, RegisterMap
from gridveil.protocol.errors import MalformedInput, Reason

MOST_BYTES = 16_384
"""Of a telegram; the standard's largest have some 2,000."""

_TIME = "0-0:1.0.0"
_METER = "0-0:96.1.1"
_UNITS = {"kWh": 1000, "Wh": 1, "kvarh": 1000, "varh": 1}
_LINE = re.compile(rb"[ -~]*\r?\n")
_CRC = re.compile(r"![0-9A-F]{4}\r\n\Z")
_STAMP = re.compile(r"[0-9]{12}[SW]")
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,3})?")
_CENTRAL_EUROPE = ZoneInfo("Europe/Amsterdam")
"""What dsmr-parser takes P1's S and W for; other zones are not told from it by a telegram."""


class Telegrams:
    """Cuts a stream of bytes into telegrams. Holds at most one of them."""

    def __init__(self) -> None:
        self._line = b""
        self._lines: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> Iterator[str | MalformedInput]:
        """Telegrams that are complete with ``data``, and a fault for each that is none."""
        for piece in data.splitlines(keepends=True):
            self._line += piece
            self._size += len(piece)
            if self._size > MOST_BYTES:
                self._drop()
                yield _fault("length", f"longer than {MOST_BYTES:,} bytes")
            elif self._line.endswith(b"\n"):
                yield from self._take()

    def _take(self) -> Iterator[str | MalformedInput]:
        line, self._line = self._line, b""
        if line.startswith(b"/"):
            cut_off = bool(self._lines)
            self._lines, self._size = [line], len(line)
            if cut_off:
                yield _fault("cut_off", "cut off: another one begins before its end")
        elif not self._lines:
            self._size = 0
        elif not _LINE.fullmatch(line):
            self._drop()
            yield _fault("bytes", "not printable ASCII")
        else:
            self._lines.append(line)
            if line.startswith(b"!"):
                text = b"".join(self._lines).decode("ascii", "replace")
                self._drop()
                yield text

    def _drop(self) -> None:
        self._line, self._lines, self._size = b"", [], 0


class TelegramReader:
    """Reads the registers of a map out of telegrams."""

    def __init__(self, registers: RegisterMap, modulus: int = MODULUS) -> None:
        """``modulus``: where the meter's registers start again, Wh or varh.

        Raises:
            MalformedInput: CONFIG_INVALID if the extra ``gridveil[meters]`` is not installed.
        """
        self._codes = registers.codes
        self._modulus = modulus
        self._parser = _parser((_METER, *self._codes))

    def cutter(self) -> Telegrams:
        """What cuts a new stream."""
        return Telegrams()

    def read(self, message: str, heard: float | None = None) -> Reading:
        """The reading in a telegram.

        Args:
            message: a telegram, from ``/`` to the line of the CRC.
            heard: when it came, Unix seconds UTC.

        Raises:
            MalformedInput: READING_INVALID, whose ``fault`` is ``checksum`` if the CRC is not
                the telegram's, ``time``, ``meter`` or ``register`` (with its OBIS code) for a line
                that is missing, there twice or not what the standard says. Never a value.
        """
        found = self._parse(message)
        registers = {code: self._register(message, found, code) for code in self._codes}
        return Reading(_meter(message, found), _time(message), registers, heard)

    def _parse(self, telegram: str) -> Any:
        from dsmr_parser.exceptions import InvalidChecksumError

        if not _CRC.search(telegram):
            raise _fault("checksum", "without a CRC of four hexadecimal digits")
        try:
            return self._parser.parse(telegram)
        except InvalidChecksumError:
            raise _fault("checksum", "wrong checksum (CRC): it was altered on the way") from None
        except Exception:
            # Whatever a parser of foreign bytes may raise is the telegram's fault, not ours.
            raise _fault("format", "not as DSMR says") from None

    def _register(self, telegram: str, found: Any, code: str) -> int:
        _only(telegram, code, "register")
        cosem = found.get(_pattern(code))
        value, unit = (None, None) if cosem is None else (cosem.value, cosem.unit)
        if not isinstance(value, str) or not _NUMBER.fullmatch(value) or unit not in _UNITS:
            raise _fault("register", f"{code} is not an energy in kWh or kvarh")
        energy = Decimal(value) * _UNITS[unit]
        if energy != int(energy) or energy >= self._modulus:
            raise _fault("register", f"{code} is not within its register")
        return int(energy)


def _parser(codes: tuple[str, ...]) -> Any:
    """dsmr-parser for these lines alone, each of one value."""
    try:
        from dsmr_parser.parsers import CosemParser, TelegramParser, ValueParser
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "dsmr_parser":
            raise
        raise MalformedInput(
            Reason.CONFIG_INVALID,
            "P1 needs dsmr-parser: install the extra with pip install 'gridveil[meters]'",
        ) from None
    # It logs lines that it cannot read, and these hold readings.
    logging.getLogger("dsmr_parser").setLevel(logging.CRITICAL + 1)
    objects = [
        {
            "obis_reference": _pattern(code),
            "value_parser": CosemParser(ValueParser(str)),
            "value_name": f"OBIS_{at}",
        }
        for at, code in enumerate(codes)
    ]
    return TelegramParser({"checksum_support": True, "objects": objects})


def _pattern(code: str) -> str:
    return rf"^{re.escape(code)}\(.*?\r\n"


def _only(telegram: str, code: str, fault: str) -> None:
    """One line of a code: of two, it is not known which one is meant."""
    count = telegram.count(f"\n{code}(")
    if count != 1:
        raise _fault(fault, f"{code} is {'missing' if count == 0 else 'there twice'}")


def _meter(telegram: str, found: Any) -> str:
    _only(telegram, _METER, "meter")
    cosem = found.get(_pattern(_METER))
    if cosem is None or not cosem.value:
        raise _fault("meter", f"{_METER} names no meter")
    return str(cosem.value)


def _time(telegram: str) -> int:
    """Of the telegram, UTC: the hour that comes twice is told by S (summer) and W (winter)."""
    from dsmr_parser.value_types import timestamp

    _only(telegram, _TIME, "time")
    _, _, rest = telegram.partition(f"\n{_TIME}(")
    stamp = rest.partition(")")[0]
    parsed: datetime | None = timestamp(stamp) if _STAMP.fullmatch(stamp) else None
    if parsed is None:
        raise _fault("time", f"{_TIME} is not YYMMDDhhmmss with S or W")
    local = parsed.astimezone(_CENTRAL_EUROPE)
    summer = bool(local.dst())
    # An hour that never was, or summer time in winter, comes back as another one.
    if local.strftime("%y%m%d%H%M%S") + ("S" if summer else "W") != stamp:
        raise _fault("time", f"{_TIME} says a time that there is not")
    return int(parsed.timestamp())


def _fault(fault: str, what: str) -> MalformedInput:
    return MalformedInput(Reason.READING_INVALID, f"telegram: {what}", fault=fault)
