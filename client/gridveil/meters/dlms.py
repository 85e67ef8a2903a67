"""DLMS/COSEM pushes: APDUs in, checked readings out (IEC 62056-5-3: data-notification).

A push is taken as it is, or, if keys are given, only if it is encrypted and authenticated with
them (general-glo-ciphering, security suites 0 to 2): what is not authenticated anybody on the wire
could have written. Its invocation counter goes along with the reading: who follows a meter refuses
one that does not rise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from gridveil.config import hex_bytes
from gridveil.meters.cosem import Item, Items, clock_of, decode
from gridveil.meters.frames import Pushes, fault
from gridveil.meters.registers import MODULUS, Reading, RegisterMap
from gridveil.protocol.errors import MalformedInput, Reason

_NOTIFICATION, _GENERAL_GLO = 0x0F, 0xDB
_BEFORE_TIME = 5
"""Tag, invoke id and priority."""

_TIME_BYTES = 12
_NO_DEVIATION = -0x8000
_UNKNOWN = 0xFF
_SUMMER = 0x80
"""Of a clock's status."""

_UNITS = {30, 32}
"""Wh and varh."""

_SCALERS = range(-6, 10)
_IDENTITIES = ("0-0:96.1.0", "0-0:96.1.1", "0-0:42.0.0", "1-0:0.0.5", "1-1:0.0.5")
_NAMELESS = "push"
"""Of a meter whose pushes name none."""


@dataclass(frozen=True)
class PushKeys:
    """What pushes of one meter are protected with. In no repr."""

    encryption: bytes = field(repr=False)
    """Global unicast encryption key: 16 bytes, or 32 for suite 2."""
    authentication: bytes = field(repr=False)

    @classmethod
    def load(cls, encryption: Path, authentication: Path) -> PushKeys:
        """From two files of hexadecimal text; CONFIG_INVALID if one is none."""
        return cls(_key(encryption), _key(authentication))


@dataclass(frozen=True)
class PushRules:
    """How pushes of one meter are read."""

    keys: PushKeys | None = None
    zone: ZoneInfo | None = None
    """Of times that say no deviation from UTC; None if there are to be none."""
    unit: int | None = None
    """Wh or varh a count, of values that say no unit; None if there are to be none."""
    modulus: int = MODULUS


class PushReader:
    """Reads the registers of a map out of pushes."""

    def __init__(self, registers: RegisterMap, rules: PushRules) -> None:
        """Make ready.

        Raises:
            MalformedInput: CONFIG_INVALID if the extra ``gridveil[meters]`` is not installed.
        """
        try:
            import dlms_cosem  # noqa: F401 - only whether it is there
        except ModuleNotFoundError:
            raise MalformedInput(
                Reason.CONFIG_INVALID,
                "DLMS needs dlms-cosem: install the extra with pip install 'gridveil[meters]'",
            ) from None
        self._codes = registers.codes
        self._rules = rules

    def cutter(self) -> Pushes:
        """What cuts a new stream."""
        return Pushes()

    def read(self, message: bytes, heard: float | None = None) -> Reading | None:
        """The reading of a push; None if it holds none of the registers.

        Args:
            message: an APDU.
            heard: when, by the reader's own clock; None if it was recorded earlier.

        Raises:
            MalformedInput: READING_INVALID with the fault, and neither a value nor a byte.
        """
        apdu, title, counter = self._opened(message)
        time, body = _notification(apdu)
        items = decode(body)
        if not any(code in items for code in self._codes):
            return None
        registers = {code: self._energy(code, items) for code in self._codes}
        at = self._moment(clock_of(items) or time)
        return Reading(title or _identity(items), at, registers, heard, counter)

    def _opened(self, apdu: bytes) -> tuple[bytes, str | None, int | None]:
        """The notification, and whose it is if it was protected."""
        ciphered = apdu[:1] == bytes([_GENERAL_GLO])
        if not ciphered and self._rules.keys is None:
            return apdu, None, None
        if not ciphered or self._rules.keys is None:
            state = "ciphered, and there is no key" if ciphered else "not ciphered"
            raise fault("security", state)
        return _decrypted(apdu, self._rules.keys)

    def _energy(self, code: str, items: Items) -> int:
        found = items.get(code, [])
        if len(found) != 1:
            raise fault("register", f"{code} is {'there twice' if found else 'missing'}")
        item = found[0]
        if not isinstance(item.value, int):
            raise fault("register", f"{code} is no number")
        energy = self._scaled(code, item, item.value)
        if not 0 <= energy < self._rules.modulus:
            raise fault("register", f"{code} is not within its register")
        return energy

    def _scaled(self, code: str, item: Item, value: int) -> int:
        """Whole Wh or varh; a register that is finer is rounded down, and loses nothing."""
        if item.unit is None or item.scaler is None:
            if self._rules.unit is None:
                raise fault("register", f"{code} has no unit, and none is given")
            return value * self._rules.unit
        if item.unit not in _UNITS or item.scaler not in _SCALERS:
            raise fault("register", f"{code} is not energy in Wh or varh")
        power: int = 10 ** abs(item.scaler)
        return value * power if item.scaler >= 0 else value // power

    def _moment(self, raw: bytes | None) -> int:
        if raw is None:
            raise fault("time", "the time is missing")
        local, deviation, status = _local(raw)
        if deviation != _NO_DEVIATION:
            # The Blue Book counts from local time to UTC.
            utc = local + timedelta(minutes=deviation)
            return int(utc.replace(tzinfo=UTC).timestamp())
        if self._rules.zone is None:
            raise fault("time", "a local time, and no zone that it is of")
        return _placed(local, status, self._rules.zone)


def _decrypted(apdu: bytes, keys: PushKeys) -> tuple[bytes, str, int]:
    from dlms_cosem import a_xdr
    from dlms_cosem.protocol.xdlms.general_global_cipher import GeneralGlobalCipher
    from dlms_cosem.security import SecurityControlField, decrypt

    decoder = a_xdr.AXdrDecoder(encoding_conf=GeneralGlobalCipher.ENCODING_CONF)
    try:
        found = decoder.decode(apdu[1:])
        title = bytes(found["system_title"].value)
        content = bytes(found["ciphered_content"].value)
        control = SecurityControlField.from_bytes(content[:1])
        if decoder.pointer != len(apdu) - 1:
            raise fault("security", "of another length than it says")
        if not (control.authenticated and control.encrypted) or control.compressed:
            raise fault("security", "not both encrypted and authenticated")
        counter = int.from_bytes(content[1:5], "big")
        plain = decrypt(control, title, counter, keys.encryption, content[5:], keys.authentication)
    except MalformedInput:
        raise
    except Exception:
        # The library raises whatever it runs into; a wrong key and a wrong byte look alike.
        raise fault("security", "not what its keys have protected") from None
    return bytes(plain), title.hex(), counter


def _notification(apdu: bytes) -> tuple[bytes | None, bytes]:
    """Time and body of a data-notification."""
    if apdu[:1] != bytes([_NOTIFICATION]):
        raise fault("apdu", "no data-notification")
    rest = apdu[_BEFORE_TIME:]
    # As some meters have it, with the tag of an octet string before its length.
    rest = rest.removeprefix(b"\x09")
    length = rest[0] if rest else -1
    if length not in {0, _TIME_BYTES} or len(rest) <= length + 1:
        raise fault("apdu", "a data-notification without its time or its body")
    return rest[1 : 1 + length] or None, rest[1 + length :]


def _local(raw: bytes) -> tuple[datetime, int, int]:
    """Local time, deviation in minutes and status of a COSEM date-time."""
    from dlms_cosem.time import date_from_bytes, time_from_bytes

    whole = len(raw) == _TIME_BYTES and _UNKNOWN not in (*raw[2:4], *raw[5:8])
    if not whole:
        raise fault("time", "no date and time to the second")
    try:
        date, time = date_from_bytes(raw[:5]), time_from_bytes(raw[5:9])
    except (ValueError, TypeError):
        raise fault("time", "a time that there is not") from None
    local = datetime.combine(date, time).replace(microsecond=0)
    return local, int.from_bytes(raw[9:11], "big", signed=True), raw[11]


def _placed(local: datetime, status: int, zone: ZoneInfo) -> int:
    """A zone's local time; the hour that comes twice is told by the clock's summer bit."""
    first, second = (local.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
    if first.utcoffset() == second.utcoffset():
        return int(first.timestamp())
    if first.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != local:
        raise fault("time", "a local time that there is not")
    if status == _UNKNOWN:
        raise fault("time", "of an hour that comes twice, and which one is not said")
    return int((first if status & _SUMMER else second).timestamp())


def _identity(items: Items) -> str:
    for code in _IDENTITIES:
        for item in items.get(code, []):
            if isinstance(item.value, bytes) and item.value:
                return item.value.hex()
    return _NAMELESS


def _key(path: Path) -> bytes:
    try:
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise MalformedInput(Reason.CONFIG_INVALID, f"{path.name} cannot be read") from None
    return hex_bytes(text, 32 if len(text) == 64 else 16, path.name)
