"""Releases and totals: what the aggregator hands over and the key-holder answers."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nacl.signing import SigningKey

from gridveil.protocol.commitment import POINT_BYTES, parse_commitment
from gridveil.protocol.errors import MalformedInput, NotAuthentic, Reason
from gridveil.protocol.layout import (
    DIGEST_BYTES,
    ID_BYTES,
    Reader,
    i64,
    sha256,
    text,
    u8,
    u32,
    u64,
)
from gridveil.protocol.merkle import leaf_hash, root
from gridveil.protocol.noise import SUM_LIMIT, Mechanism, Noise, read_mechanism
from gridveil.protocol.report import Claim, check_flags
from gridveil.protocol.signing import is_signed_by, sign
from gridveil.protocol.slots import GROUP_ORDER

_ENTRY = struct.Struct("<16sI32s48s32s64s")
ENTRY_BYTES = _ENTRY.size
OPENED_ENTRY_BYTES = ENTRY_BYTES + 32
CHUNK_BYTES = 1_048_576 // ENTRY_BYTES * ENTRY_BYTES
"""Longest entry chunk: the whole entries in 1 MiB."""

_RELEASE_DOMAIN = "gridveil/v1/release"
_ENTRIES_DOMAIN = "gridveil/v1/release-entries"
_TOTAL_DOMAIN = "gridveil/v1/total"


class Entry(NamedTuple):
    """One report without its ciphertext, as the key-holder checks it."""

    claim: Claim
    signature: bytes

    def encode(self) -> bytes:
        """196 bytes: meter id, flags, h, sealed commitment, ciphertext digest, signature."""
        _, _, meter_id, flags, h, sealed, ciphertext_digest = self.claim
        return _ENTRY.pack(meter_id, flags, h, sealed, ciphertext_digest, self.signature)

    @classmethod
    def decode(cls, data: bytes, parameters_digest: bytes, window_start: int) -> Entry:
        """The entry in exactly 196 bytes; the release says which parameters and window."""
        if len(data) != ENTRY_BYTES:
            raise MalformedInput(Reason.MALFORMED_MESSAGE, "an entry has 196 bytes")
        meter_id, flags, h, sealed, ciphertext_digest, signature = _ENTRY.unpack(data)
        check_flags(flags)
        claim = Claim(
            parameters_digest, window_start, meter_id, flags, h, sealed, ciphertext_digest
        )
        return cls(claim, signature)


def split_entries(data: bytes) -> Iterator[bytes]:
    """The whole 196-byte entries of a chunk."""
    if len(data) % ENTRY_BYTES:
        raise MalformedInput(Reason.MALFORMED_MESSAGE, "not whole entries")
    for at in range(0, len(data), ENTRY_BYTES):
        yield data[at : at + ENTRY_BYTES]


def split_opened(data: bytes) -> Iterator[bytes]:
    """The whole 228-byte opened entries of a chunk."""
    if len(data) % OPENED_ENTRY_BYTES:
        raise MalformedInput(Reason.MALFORMED_MESSAGE, "not whole opened entries")
    for at in range(0, len(data), OPENED_ENTRY_BYTES):
        yield data[at : at + OPENED_ENTRY_BYTES]


def entries_root(chunks: Iterable[bytes]) -> bytes:
    """Merkle root (RFC 9162) over opened entries, each a leaf; chunks of whole ones, in order."""
    return root(leaf_hash(entry) for chunk in chunks for entry in split_opened(chunk))


@dataclass(frozen=True)
class LaneSum:
    """The sum ciphertext of one lane with at least one report."""

    lane: int
    count: int
    ciphertext: bytes


@dataclass(frozen=True)
class ReleaseHeader:
    """What a release is about."""

    city_id: bytes
    parameters_digest: bytes
    window_start: int
    roster_version: int
    lanes: int
    """L, for the roster version; lanes without a report are not sent."""
    count: int


class EntriesDigest:
    """Running SHA-256 over all entry bytes, ascending by (lane, meter id)."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(text(_ENTRIES_DOMAIN))

    def update(self, data: bytes) -> None:
        """Add whole entries."""
        self._hash.update(data)

    def digest(self) -> bytes:
        """32 bytes, of all entries so far."""
        return self._hash.copy().digest()


def release_digest(header: ReleaseHeader, lanes: Sequence[LaneSum], entries_digest: bytes) -> bytes:
    """The digest that names a release for ever: header, lanes in order, entries."""
    parts = [
        text(_RELEASE_DOMAIN),
        header.city_id,
        header.parameters_digest,
        u64(header.window_start),
        u64(header.roster_version),
        u32(header.lanes),
        u64(header.count),
        u32(len(lanes)),
    ]
    parts += (u32(s.lane) + u64(s.count) + sha256(s.ciphertext) for s in lanes)
    return sha256(b"".join(parts) + entries_digest)


@dataclass(frozen=True)
class RegisterTotal:
    """The city's sum of one register."""

    name: str
    unit: str
    sum: int
    """In the register's unit; with noise it may be negative."""


@dataclass(frozen=True)
class TotalNoise:
    """What a noisy total says of its noise."""

    noise: Noise
    commitment: bytes
    """N: the key-holder's commitment to the noise, 32 bytes, as if a meter had reported it."""


@dataclass(frozen=True)
class Total:
    """A released total. Sums are over ``count`` distinct enrolled meters, each once."""

    city_id: bytes
    epoch_id: bytes
    parameters_digest: bytes
    window_start: int
    window_length: int
    roster_version: int
    enrolled: int
    count: int
    lanes: int
    left_out: tuple[int, ...]
    """Lanes that did not open, ascending: their meters are enrolled and not counted."""
    release_digest: bytes
    entries_root: bytes
    """Merkle root over the opened entries (entry, then commitment), ascending by (lane, meter)."""
    registers: tuple[RegisterTotal, ...]
    blinding: bytes
    """B: sum of the blindings mod the group order, 32 bytes little-endian."""
    added: TotalNoise | None = None
    """The noise in sums and blinding; None: they are exact."""

    @property
    def noise(self) -> Noise | None:
        """Mechanism and loss of its noise; None: it is exact."""
        return self.added.noise if self.added else None

    @property
    def coverage(self) -> float:
        """Reported / enrolled."""
        return self.count / self.enrolled

    def sum(self, register: str) -> int:
        """City-wide sum of a register in its unit."""
        return next(r.sum for r in self.registers if r.name == register)

    def mean(self, register: str) -> float:
        """Mean a reporting meter, in the register's unit."""
        return self.sum(register) / self.count

    def encode(self) -> bytes:
        """Canonical encoding."""
        registers = (text(r.name) + text(r.unit) + i64(r.sum) for r in self.registers)
        return b"".join(
            (
                text(_TOTAL_DOMAIN),
                self.city_id,
                self.epoch_id,
                self.parameters_digest,
                u64(self.window_start),
                u32(self.window_length),
                u64(self.roster_version),
                u64(self.enrolled),
                u64(self.count),
                u32(self.lanes),
                u32(len(self.left_out)),
                *map(u32, self.left_out),
                self.release_digest,
                self.entries_root,
                u8(len(self.registers)),
                *registers,
                self.blinding,
                _encode_noise(self.added),
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> Total:
        """The total in ``data``."""
        reader = Reader(data, "total")
        reader.domain(_TOTAL_DOMAIN)
        total = cls(
            city_id=reader.take(ID_BYTES),
            epoch_id=reader.take(ID_BYTES),
            parameters_digest=reader.take(DIGEST_BYTES),
            window_start=reader.uint(8),
            window_length=reader.uint(4),
            roster_version=reader.uint(8),
            enrolled=reader.uint(8),
            count=reader.uint(8),
            lanes=reader.uint(4),
            left_out=tuple(reader.uint(4) for _ in range(reader.uint(4))),
            release_digest=reader.take(DIGEST_BYTES),
            entries_root=reader.take(DIGEST_BYTES),
            registers=tuple(
                RegisterTotal(reader.text(), reader.text(), reader.int64())
                for _ in range(reader.uint(1))
            ),
            blinding=reader.take(32),
            added=_read_noise(reader),
        )
        reader.end()
        if not 0 < total.count <= total.enrolled:
            raise MalformedInput(Reason.MALFORMED_MESSAGE, "total counts more than were enrolled")
        if list(total.left_out) != sorted({lane for lane in total.left_out if lane < total.lanes}):
            raise MalformedInput(Reason.MALFORMED_MESSAGE, "total leaves out lanes that are none")
        if int.from_bytes(total.blinding, "little") >= GROUP_ORDER:
            raise MalformedInput(Reason.MALFORMED_MESSAGE, "total's blinding is not reduced")
        least = 0 if total.added is None else 1 - SUM_LIMIT
        if not all(least <= register.sum < SUM_LIMIT for register in total.registers):
            raise MalformedInput(Reason.MALFORMED_MESSAGE, "total holds a sum that is none")
        return total

    def sign(self, identity: SigningKey) -> bytes:
        """The key-holder's signature, 64 bytes."""
        return sign(identity, self.encode())


def _encode_noise(added: TotalNoise | None) -> bytes:
    if added is None:
        return u8(Mechanism.NONE)
    return u8(added.noise.mechanism) + u32(added.noise.loss_ppm) + added.commitment


def _read_noise(reader: Reader) -> TotalNoise | None:
    mechanism = read_mechanism(reader)
    if mechanism is Mechanism.NONE:
        return None
    loss_ppm, commitment = reader.uint(4), reader.take(POINT_BYTES)
    try:
        return TotalNoise(Noise(mechanism, loss_ppm), parse_commitment(commitment))
    except MalformedInput:
        raise MalformedInput(Reason.MALFORMED_MESSAGE, "total has noise that is none") from None


def open_total(data: bytes, signature: bytes, identity_key: bytes) -> Total:
    """A total that the pinned identity key signed, or KEY_NOT_PINNED before it is read."""
    if not is_signed_by(identity_key, data, signature):
        raise NotAuthentic(Reason.KEY_NOT_PINNED, "the total is not signed by the key-holder")
    return Total.decode(data)
