"""Enrolments and rosters: who may report, in versions signed by the key-holder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nacl.signing import SigningKey

from gridveil.protocol.errors import MalformedInput, NotAuthentic, Reason
from gridveil.protocol.layout import (
    DIGEST_BYTES,
    ID_BYTES,
    KEY_BYTES,
    SIGNATURE_BYTES,
    Reader,
    text,
    u64,
)
from gridveil.protocol.sealing import check_x25519_public
from gridveil.protocol.signing import is_signed_by, sign, verify

ENTRY_BYTES = ID_BYTES + 2 * KEY_BYTES
ENROLMENT_DOMAIN = "gridveil/v1/enrolment"
ENROLMENT_BYTES = 1 + len(ENROLMENT_DOMAIN) + ID_BYTES + ENTRY_BYTES + SIGNATURE_BYTES

_ENTRIES_DOMAIN = "gridveil/v1/roster-entries"
_VERSION_DOMAIN = "gridveil/v1/roster-version"


@dataclass(frozen=True, order=True)
class Member:
    """One enrolled meter: its pseudonym and public keys."""

    meter_id: bytes
    signing_key: bytes
    """Ed25519."""
    sealing_key: bytes
    """X25519."""

    def encode(self) -> bytes:
        """80 bytes: id, Ed25519 key, X25519 key."""
        return self.meter_id + self.signing_key + self.sealing_key


def parse_members(data: bytes) -> Iterator[Member]:
    """The members in whole 80-byte entries."""
    if len(data) % ENTRY_BYTES:
        raise MalformedInput(Reason.MALFORMED_MESSAGE, "not whole roster entries")
    for at in range(0, len(data), ENTRY_BYTES):
        keys = at + ID_BYTES
        yield Member(
            data[at:keys], data[keys : keys + KEY_BYTES], data[keys + KEY_BYTES : at + ENTRY_BYTES]
        )


def enrolment_request(city_id: bytes, member: Member, key: SigningKey) -> bytes:
    """A meter's request to be enrolled; its signature proves that it holds the signing key."""
    request = text(ENROLMENT_DOMAIN) + city_id + member.encode()
    return request + sign(key, request)


def open_enrolment(data: bytes, city_id: bytes) -> Member:
    """The member that asks, or MALFORMED_MESSAGE, FIELD_FORMAT or SIGNATURE_INVALID."""
    reader = Reader(data, "enrolment")
    reader.domain(ENROLMENT_DOMAIN)
    if reader.take(ID_BYTES) != city_id:
        raise MalformedInput(Reason.FIELD_FORMAT, "enrolment for another city", field="city_id")
    (member,) = parse_members(reader.take(ENTRY_BYTES))
    signature = reader.take(SIGNATURE_BYTES)
    reader.end()
    verify(member.signing_key, data[:-SIGNATURE_BYTES], signature)
    check_x25519_public(member.sealing_key)
    return member


@dataclass(frozen=True)
class RosterVersion:
    """Head of one roster version: what the key-holder signs."""

    city_id: bytes
    version: int
    effective_window: int
    """First window the version is in force for."""
    count: int
    digest: bytes
    """SHA-256 over all entries, ascending by meter id."""

    def encode(self) -> bytes:
        """Canonical encoding."""
        return b"".join(
            (
                text(_VERSION_DOMAIN),
                self.city_id,
                u64(self.version),
                u64(self.effective_window),
                u64(self.count),
                self.digest,
            )
        )

    def sign(self, identity: SigningKey) -> bytes:
        """The key-holder's signature, 64 bytes."""
        return sign(identity, self.encode())


def open_roster_version(
    data: bytes, signature: bytes, identity_key: bytes, city_id: bytes
) -> RosterVersion:
    """A version head that the pinned identity key signed for this city, or KEY_NOT_PINNED."""
    if not is_signed_by(identity_key, data, signature):
        raise NotAuthentic(Reason.KEY_NOT_PINNED, "the roster is not signed by the key-holder")
    reader = Reader(data, "roster version")
    reader.domain(_VERSION_DOMAIN)
    head = RosterVersion(
        reader.take(ID_BYTES),
        reader.uint(8),
        reader.uint(8),
        reader.uint(8),
        reader.take(DIGEST_BYTES),
    )
    reader.end()
    if head.city_id != city_id:
        raise NotAuthentic(Reason.KEY_NOT_PINNED, "the roster is of another city")
    return head


def roster_digest(members: Iterable[Member]) -> bytes:
    """SHA-256 over the entries of ``members``, which must ascend by meter id."""
    digest = hashlib.sha256(text(_ENTRIES_DOMAIN))
    for member in members:
        digest.update(member.encode())
    return digest.digest()
