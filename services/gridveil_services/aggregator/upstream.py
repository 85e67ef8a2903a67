"""The key-holder as the aggregator sees it: signed documents out, releases in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import grpc

from gridveil.profile import Tls
from gridveil.protocol.city import open_city_parameters
from gridveil.protocol.errors import MalformedInput, Reason, Unavailable
from gridveil.protocol.layout import ID_BYTES
from gridveil.protocol.roster import Member, RosterVersion, open_roster_version, parse_members
from gridveil.protocol.v1 import aggregator_pb2, keyholder_pb2, keyholder_pb2_grpc
from gridveil.tracing.spans import Tracer, Untraced
from gridveil.transport import connect, from_rpc_error
from gridveil_services.aggregator.city import SignedParameters

CALL_S = 10.0
ROSTER_S = 120.0
RELEASE_S = 900.0
"""A million reports take the key-holder some minutes."""

_SERVICE = keyholder_pb2.DESCRIPTOR.services_by_name["KeyHolder"].full_name


class RosterChange(NamedTuple):
    """What leads from a known version to another, as the key-holder signed its head."""

    head: RosterVersion
    signature: bytes
    removed: list[bytes]
    added: list[Member]


class KeyHolderClient:
    """Calls to the key-holder; nothing that the pinned identity key did not sign is returned.

    All methods raise ``GridveilError``: what the key-holder answered, or Unavailable.
    """

    def __init__(
        self,
        address: str,
        city_id: bytes,
        identity_key: bytes,
        tls: Tls,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer or Untraced()
        self._city_id = city_id
        self._identity_key = identity_key
        self._channel = connect(address, "keyholder", city_id, tls)
        self._keyholder = keyholder_pb2_grpc.KeyHolderStub(self._channel)
        self._roster = keyholder_pb2_grpc.RosterStub(self._channel)

    def parameters(self, window_start: int) -> SignedParameters:
        """City parameters of a window's epoch; of the current window for 0.

        Raises:
            NotAuthentic: KEY_NOT_PINNED if they are not signed for this city.
        """
        request = aggregator_pb2.GetCityParametersRequest(window_start=window_start)
        with _typed_errors():
            answer = self._keyholder.GetCityParameters(request, timeout=CALL_S)
        parameters = open_city_parameters(
            answer.parameters, answer.signature, self._identity_key, self._city_id
        )
        return SignedParameters(parameters, answer.parameters, answer.signature)

    def roster(self, known_version: int, window_start: int) -> RosterChange:
        """What leads from a version to the one in force for a window; digest not yet checked.

        Raises:
            NotAuthentic: KEY_NOT_PINNED if its head is not signed for this city.
        """
        request = keyholder_pb2.GetRosterRequest(
            known_version=known_version, window_start=window_start
        )
        with _typed_errors():
            return self._read_change(self._roster.GetRoster(request, timeout=ROSTER_S))

    def precheck(
        self, window_start: int, parameters_digest: bytes, roster_version: int, entries: bytes
    ) -> int:
        """Hand entries over ahead of a release; meters of the window that are held afterwards."""
        request = keyholder_pb2.PrecheckEntriesRequest(
            window_start=window_start,
            parameters_digest=parameters_digest,
            roster_version=roster_version,
            entries=entries,
        )
        with self._tracer.call(f"{_SERVICE}/PrecheckEntries") as metadata, _typed_errors():
            held: int = self._keyholder.PrecheckEntries(
                request, timeout=CALL_S, metadata=metadata
            ).held
        return held

    def progress(self, window_start: int, release_digest: bytes) -> int | None:
        """Entry bytes of a release that the key-holder holds already; None if it is settled."""
        request = keyholder_pb2.GetReleaseProgressRequest(
            window_start=window_start, release_digest=release_digest
        )
        with self._tracer.call(f"{_SERVICE}/GetReleaseProgress") as metadata, _typed_errors():
            answer = self._keyholder.GetReleaseProgress(request, timeout=CALL_S, metadata=metadata)
        return None if answer.complete else answer.entry_bytes

    def release(self, messages: Iterator[keyholder_pb2.ReleaseMessage]) -> bytes:
        """The digest of the release that settled the window."""
        with self._tracer.call(f"{_SERVICE}/Release") as metadata, _typed_errors():
            digest: bytes = self._keyholder.Release(
                messages, timeout=RELEASE_S, metadata=metadata
            ).release_digest
        return digest

    def close(self) -> None:
        """End all calls."""
        self._channel.close()

    def _read_change(self, chunks: Iterator[keyholder_pb2.RosterChunk]) -> RosterChange:
        first = next(chunks, None)
        if first is None or not first.HasField("head"):
            raise MalformedInput(Reason.MALFORMED_MESSAGE, "a roster without its head")
        signed = first.head
        head = open_roster_version(
            signed.roster_version, signed.signature, self._identity_key, self._city_id
        )
        change = RosterChange(head, signed.signature, [], [])
        _take(first, change)
        for chunk in chunks:
            _take(chunk, change)
        return change


def _take(chunk: keyholder_pb2.RosterChunk, change: RosterChange) -> None:
    if len(chunk.removed) % ID_BYTES:
        raise MalformedInput(Reason.MALFORMED_MESSAGE, "not whole meter ids")
    change.added.extend(parse_members(chunk.added))
    change.removed.extend(
        chunk.removed[at : at + ID_BYTES] for at in range(0, len(chunk.removed), ID_BYTES)
    )
    if len(change.added) > change.head.count:
        raise MalformedInput(Reason.MALFORMED_MESSAGE, "a roster of more than its head counts")


@contextmanager
def _typed_errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
    except ValueError:
        # What gRPC says of a channel that was closed.
        raise Unavailable(Reason.UNREACHABLE, "the connection was closed") from None
