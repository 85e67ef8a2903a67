"""What makes a meter: its pseudonym and its two secret keys; and files of one or of many.

A file of one meter (``meter.key``) is one JSON object; a fleet file (``fleet.jsonl``) is one such
object a line. Both are readable by their owner only and replaced durably.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
from nacl.signing import SigningKey

from gridveil.files import sync_folder, write_durably
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.layout import ID_BYTES, KEY_BYTES, fixed
from gridveil.protocol.roster import Member, enrolment_request
from gridveil.protocol.sealing import x25519_public


class _KeyRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    meter_id: str
    signing_seed: str
    sealing_secret: str
    label: str | None = None


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(_KeyRecord)


@dataclass(frozen=True)
class MeterKeys:
    """One meter's identity. Its secrets are in no repr."""

    meter_id: bytes
    """16 random bytes: a pseudonym, never a contract or serial number."""
    signing_seed: bytes
    """Ed25519 seed, 32 bytes."""
    sealing_secret: bytes
    """X25519 secret, 32 bytes."""
    label: str | None = None
    """Name in a simulator's source of readings. It stays in the file and is never sent."""

    def __post_init__(self) -> None:
        fixed(self.meter_id, ID_BYTES, "meter_id")
        fixed(self.signing_seed, KEY_BYTES, "signing_seed")
        fixed(self.sealing_secret, KEY_BYTES, "sealing_secret")

    def __repr__(self) -> str:
        return f"MeterKeys(meter_id={self.meter_id.hex()})"

    @classmethod
    def create(cls, label: str | None = None) -> MeterKeys:
        """A new meter, from the system's randomness."""
        return cls(
            secrets.token_bytes(ID_BYTES),
            secrets.token_bytes(KEY_BYTES),
            secrets.token_bytes(KEY_BYTES),
            label,
        )

    @property
    def signing_key(self) -> SigningKey:
        """The Ed25519 key that signs reports and the enrolment."""
        return SigningKey(self.signing_seed)

    @property
    def member(self) -> Member:
        """What the roster holds of this meter: id and public keys."""
        return Member(
            self.meter_id,
            bytes(self.signing_key.verify_key),
            x25519_public(self.sealing_secret),
        )

    def enrolment_request(self, city_id: bytes) -> bytes:
        """The signed request that a registrar hands to the key-holder."""
        return enrolment_request(city_id, self.member, self.signing_key)

    def save(self, path: Path | str) -> None:
        """Write the keys to a new file, mode 0600; CONFIG_INVALID if there is one already."""
        target = Path(path)
        _refuse_existing(target)
        write_durably(target, self._line())

    @classmethod
    def load(cls, path: Path | str) -> MeterKeys:
        """The keys in a file; CONFIG_INVALID names what is wrong with it, never its content."""
        source = Path(path)
        try:
            data = source.read_bytes()
        except OSError:
            raise _invalid(source.name, "cannot be read") from None
        return cls._parse(data, source.name)

    def _line(self) -> bytes:
        record = _KeyRecord(
            self.meter_id.hex(), self.signing_seed.hex(), self.sealing_secret.hex(), self.label
        )
        return _ENCODER.encode(record) + b"\n"

    @classmethod
    def _parse(cls, line: bytes, where: str) -> MeterKeys:
        try:
            record = _DECODER.decode(line)
            return cls(
                bytes.fromhex(record.meter_id),
                bytes.fromhex(record.signing_seed),
                bytes.fromhex(record.sealing_secret),
                record.label,
            )
        except (msgspec.DecodeError, ValueError, MalformedInput):
            raise _invalid(where, "does not hold a meter's keys") from None


def write_fleet(path: Path | str, meters: Iterable[MeterKeys]) -> int:
    """Write a new fleet file, mode 0600, streaming; its number of meters.

    Raises:
        MalformedInput: CONFIG_INVALID if the file exists: the keys of enrolled meters are in it.
    """
    target = Path(path)
    _refuse_existing(target)
    fresh = target.with_name(target.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        count = _write_lines(file, meters)
    fresh.rename(target)
    sync_folder(target.parent)
    return count


def append_fleet(path: Path | str, meters: Iterable[MeterKeys]) -> int:
    """Add meters to a fleet file, or begin one, and make them durable; how many were added."""
    target = Path(path)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as file:
        count = _write_lines(file, meters)
    sync_folder(target.parent)
    return count


def read_fleet(path: Path | str) -> Iterator[MeterKeys]:
    """The meters of a fleet file, one after the other.

    Raises:
        MalformedInput: CONFIG_INVALID, naming file and line, for a line that does not hold a
            meter's keys or repeats a meter id or a label.
    """
    source = Path(path)
    seen: set[bytes | str] = set()
    try:
        file = source.open("rb")
    except OSError:
        raise _invalid(source.name, "cannot be read") from None
    with file:
        for number, line in enumerate(file, 1):
            where = f"{source.name}, line {number}"
            meter = MeterKeys._parse(line, where)
            if meter.meter_id in seen or meter.label in seen:
                raise _invalid(where, "repeats a meter")
            seen.add(meter.meter_id)
            if meter.label is not None:
                seen.add(meter.label)
            yield meter


def _write_lines(file: BinaryIO, meters: Iterable[MeterKeys]) -> int:
    count = 0
    for meter in meters:
        file.write(meter._line())
        count += 1
    file.flush()
    os.fsync(file.fileno())
    return count


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise _invalid(path.name, "exists already; it may hold the keys of enrolled meters")


def _invalid(where: str, what: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, f"{where} {what}")
