"""A sealed window as the key-holder is told of it. The same bytes however often it is built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from gridveil.protocol.release import (
    CHUNK_BYTES,
    EntriesDigest,
    LaneSum,
    ReleaseHeader,
    release_digest,
)
from gridveil.protocol.v1 import keyholder_pb2
from gridveil_services.aggregator.store.interface import Store, Window


@dataclass(frozen=True)
class SealedRelease:
    """Header, lanes and digest of a release; its entries stay in the store until they are sent."""

    header: ReleaseHeader
    lanes: tuple[LaneSum, ...]
    digest: bytes

    @classmethod
    def of(cls, store: Store, window: Window, city_id: bytes) -> Self:
        """The release of a sealed window; PARTIAL_CORRUPT if what is stored of it is not whole."""
        lanes = tuple(store.lane_sums(window.start))
        entries = EntriesDigest()
        for piece in store.entries(window.start):
            entries.update(piece)
        header = ReleaseHeader(
            city_id,
            window.parameters_digest,
            window.start,
            window.roster_version,
            window.lanes,
            sum(lane.count for lane in lanes),
        )
        return cls(header, lanes, release_digest(header, lanes, entries.digest()))

    def header_message(self) -> keyholder_pb2.ReleaseMessage:
        """The first message; enough for a release that is settled."""
        header = self.header
        return keyholder_pb2.ReleaseMessage(
            header=keyholder_pb2.ReleaseHeader(
                window_start=header.window_start,
                parameters_digest=header.parameters_digest,
                roster_version=header.roster_version,
                lanes=header.lanes,
                count=header.count,
                release_digest=self.digest,
            )
        )

    def messages(
        self, entries: Iterator[bytes], offset: int
    ) -> Iterator[keyholder_pb2.ReleaseMessage]:
        """The whole stream.

        Args:
            entries: all entries, in pieces.
            offset: entry bytes that the key-holder holds already.
        """
        yield self.header_message()
        for lane in self.lanes:
            message = keyholder_pb2.ReleaseLane(
                lane=lane.lane, count=lane.count, ciphertext=lane.ciphertext
            )
            yield keyholder_pb2.ReleaseMessage(lane=message)
        for at, chunk in chunks(entries, offset):
            yield keyholder_pb2.ReleaseMessage(
                entries=keyholder_pb2.EntryChunk(offset=at, entries=chunk)
            )
        yield keyholder_pb2.ReleaseMessage(
            close=keyholder_pb2.ReleaseClose(release_digest=self.digest)
        )


def chunks(pieces: Iterator[bytes], offset: int) -> Iterator[tuple[int, bytes]]:
    """Pieces cut anew into chunks of at most CHUNK_BYTES, from an offset on, each with its own."""
    held, skip, at = bytearray(), offset, offset
    for piece in pieces:
        held += piece[skip:]
        skip = max(0, skip - len(piece))
        while len(held) >= CHUNK_BYTES:
            yield at, bytes(held[:CHUNK_BYTES])
            del held[:CHUNK_BYTES]
            at += CHUNK_BYTES
    if held:
        yield at, bytes(held)
