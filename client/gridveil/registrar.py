"""What a registrar uses: enrolling and withdrawing meters, and the roster as it stands.

Every roster is checked: its head against the pinned identity key and the city, its members
against the head's digest and count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc

from gridveil.profile import Profile
from gridveil.protocol.city import CityParameters, open_city_parameters
from gridveil.protocol.errors import MalformedInput, NotAuthentic, Reason
from gridveil.protocol.layout import ID_BYTES, fixed
from gridveil.protocol.roster import (
    Member,
    RosterVersion,
    open_roster_version,
    parse_members,
    roster_digest,
)
from gridveil.protocol.v1 import aggregator_pb2, keyholder_pb2, keyholder_pb2_grpc
from gridveil.transport import connect, from_rpc_error, server_stream

CALL_TIMEOUT_S = 60.0
MOST_A_CALL = 4_096
"""Meters in one EnrolMeters or WithdrawMeters call."""

T = TypeVar("T")


def _ignore(_count: int) -> None:
    pass


@dataclass(frozen=True)
class Suspect:
    """What speaks against one meter: a hint, and never a verdict.

    A meter that is honest shares its lanes with others, and whoever adds the ciphertexts can make
    any lane fail. All counts are since the meter came under suspicion.
    """

    meter_id: bytes
    windows: int
    """In which its lane was decrypted, or its seal did not open."""
    failed: int
    """In which its lane was decrypted and did not open."""
    proven: int
    """In which it signed a seal that does not open: that was the meter, or who holds its keys."""
    score: float
    """Bits of evidence that it makes its lanes fail, 0 to 64."""


@dataclass(frozen=True)
class Roster:
    """A verified roster version with its members, ascending by meter id."""

    head: RosterVersion
    members: tuple[Member, ...]
    signature: bytes
    """The key-holder's, of the head; keep it to prove the roster to others."""


class Registrar:
    """Blocking access to the key-holder's roster; a context manager."""

    def __init__(self, profile: Profile, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._profile = profile
        self._timeout = timeout_s
        self._channel = connect(
            profile.endpoint("keyholder"), "keyholder", profile.city_id, profile.tls
        )
        self._roster = keyholder_pb2_grpc.RosterStub(self._channel)

    @classmethod
    def open(cls, profile: Path | str | Profile, *, timeout_s: float = CALL_TIMEOUT_S) -> Self:
        """A registrar of the city in a profile file. Connects at the first call."""
        loaded = profile if isinstance(profile, Profile) else Profile.load(Path(profile))
        return cls(loaded, timeout_s=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def enrol(
        self, requests: Iterable[bytes], progress: Callable[[int], None] = _ignore
    ) -> RosterVersion | None:
        """Enrol meters from the next window on, 4,096 a call.

        Args:
            requests: enrolment requests, as :func:`gridveil.protocol.roster.enrolment_request`
                makes them.
            progress: told after each call how many more meters are enrolled.

        Returns:
            The roster version after the last call; None if there were no requests.

        Raises:
            GridveilError: as soon as a call fails; the calls before it stand.
        """
        last: RosterVersion | None = None
        for chunk in _chunks(requests):
            request = keyholder_pb2.EnrolMetersRequest(enrolments=chunk)
            try:
                signed = self._roster.EnrolMeters(request, timeout=self._timeout)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
            last = self._open_head(signed)
            progress(len(chunk))
        return last

    def withdraw(
        self, meter_ids: Iterable[bytes], progress: Callable[[int], None] = _ignore
    ) -> RosterVersion | None:
        """Withdraw meters from the next window on, like :meth:`enrol`. Ids are 16 bytes."""
        last: RosterVersion | None = None
        for chunk in _chunks(meter_ids):
            request = keyholder_pb2.WithdrawMetersRequest(meter_ids=chunk)
            try:
                signed = self._roster.WithdrawMeters(request, timeout=self._timeout)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
            last = self._open_head(signed)
            progress(len(chunk))
        return last

    def roster(self, window_start: int, known: Roster | None = None) -> Roster:
        """The verified roster in force for a window.

        Args:
            window_start: Unix seconds.
            known: an earlier roster; only the change since then is fetched.
        """
        members = {member.meter_id: member for member in known.members} if known else {}
        request = keyholder_pb2.GetRosterRequest(
            known_version=known.head.version if known else 0, window_start=window_start
        )
        head: RosterVersion | None = None
        signature = b""
        with closing(server_stream(self._roster.GetRoster(request))) as chunks:
            for chunk in chunks:
                if chunk.HasField("head"):
                    head, signature = self._open_head(chunk.head), chunk.head.signature
                for meter_id in _ids(chunk.removed):
                    members.pop(meter_id, None)
                members.update((m.meter_id, m) for m in parse_members(chunk.added))
        return _checked(head, tuple(sorted(members.values())), signature)

    def suspects(self, limit: int = 20) -> list[Suspect]:
        """Enrolled meters that may make lanes fail: proven ones first, then by score.

        The key-holder's word, signed by nobody; a hint and never a verdict.

        Args:
            limit: how many at the most, 1 to 1,000.
        """
        request = keyholder_pb2.ListSuspectsRequest(limit=limit)
        try:
            answer = self._roster.ListSuspects(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return [
            Suspect(fixed(s.meter_id, ID_BYTES, "meter_id"), s.windows, s.failed, s.proven, s.score)
            for s in answer.suspects
        ]

    def parameters(self, window_start: int = 0) -> CityParameters:
        """The verified city parameters of a window's epoch; 0 asks for the current window."""
        stub = keyholder_pb2_grpc.KeyHolderStub(self._channel)
        request = aggregator_pb2.GetCityParametersRequest(window_start=window_start)
        try:
            signed = stub.GetCityParameters(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        profile = self._profile
        return open_city_parameters(
            signed.parameters, signed.signature, profile.identity_key, profile.city_id
        )

    def _open_head(self, signed: keyholder_pb2.SignedRosterVersion) -> RosterVersion:
        profile = self._profile
        return open_roster_version(
            signed.roster_version, signed.signature, profile.identity_key, profile.city_id
        )


def _checked(head: RosterVersion | None, members: tuple[Member, ...], signature: bytes) -> Roster:
    if head is None:
        raise MalformedInput(Reason.MALFORMED_MESSAGE, "a roster without its head")
    if (head.count, head.digest) != (len(members), roster_digest(members)):
        raise NotAuthentic(Reason.KEY_NOT_PINNED, "the members are not those of the signed roster")
    return Roster(head, members, signature)


def _ids(data: bytes) -> Iterator[bytes]:
    if len(data) % ID_BYTES:
        raise MalformedInput(Reason.MALFORMED_MESSAGE, "not whole meter ids")
    for at in range(0, len(data), ID_BYTES):
        yield data[at : at + ID_BYTES]


def _chunks(items: Iterable[T]) -> Iterator[Sequence[T]]:
    source = iter(items)
    while chunk := list(islice(source, MOST_A_CALL)):
        yield chunk
