"""Taking a release in: the messages of one stream, in their order, into the spool.

header, lanes ascending, chunks of whole entries, close
"""

from __future__ import annotations

from collections.abc import Iterator

from gridveil.protocol.ciphertext import parse_sum
from gridveil.protocol.city import CityPolicy
from gridveil.protocol.errors import GridveilError, MalformedInput, Reason, Unavailable
from gridveil.protocol.layout import DIGEST_BYTES, fixed
from gridveil.protocol.release import (
    CHUNK_BYTES,
    ENTRY_BYTES,
    LaneSum,
    ReleaseHeader,
    release_digest,
)
from gridveil.protocol.v1.keyholder_pb2 import (
    EntryChunk,
    ReleaseClose,
    ReleaseLane,
    ReleaseMessage,
)
from gridveil_services.keyholder.cohort import Cohort, Known
from gridveil_services.keyholder.entries import invalid
from gridveil_services.keyholder.policy import RETRY_S
from gridveil_services.keyholder.spool import Spool, SpooledRelease, read_chunks


def read_header(messages: Iterator[ReleaseMessage], city_id: bytes) -> tuple[ReleaseHeader, bytes]:
    """The header that a stream begins with, and the release's digest.

    Raises:
        MalformedInput: STREAM_PROTOCOL, FIELD_REQUIRED or FIELD_FORMAT.
    """
    message = next(messages, None)
    if message is None or message.WhichOneof("part") != "header":
        raise _out_of_order("a release begins with its header")
    header = message.header
    parameters = fixed(header.parameters_digest, DIGEST_BYTES, "parameters_digest")
    return (
        ReleaseHeader(
            city_id,
            parameters,
            header.window_start,
            header.roster_version,
            header.lanes,
            header.count,
        ),
        fixed(header.release_digest, DIGEST_BYTES, "release_digest"),
    )


class Intake:
    """One release, as far as it came. What was checked and spooled stays when a stream breaks."""

    def __init__(self, spool: Spool, cohort: Cohort, policy: CityPolicy) -> None:
        self.spool = spool
        self._cohort = cohort
        self._policy = policy
        self.is_lost = False
        """Whether a failed sync may have dropped what was spooled."""

    def recheck(self) -> None:
        """Count the entries that lie in the spool after a restart, as far as they are right."""
        for chunk in read_chunks(self.spool.folder):
            whole = chunk[: len(chunk) // ENTRY_BYTES * ENTRY_BYTES]
            if not whole:
                return
            try:
                examined = self._cohort.examine(whole)
            except GridveilError:
                return
            self._cohort.accept(whole, examined)
            self.spool.size += len(whole)

    def known(self) -> Known:
        """What is known of the commitments of a release that is whole."""
        return self._cohort.known()

    def take(self, messages: Iterator[ReleaseMessage]) -> SpooledRelease:
        """All that follows the header, to the close; durable and proven when this returns.

        Raises:
            MalformedInput: STREAM_PROTOCOL, COHORT_INVALID, DIGEST_MISMATCH, or what is wrong
                with a ciphertext.
            NotAuthentic: SIGNATURE_INVALID.
            Unavailable: KEYHOLDER_UNAVAILABLE if the spool cannot be written.
        """
        lanes: list[LaneSum] = []
        started = False
        for message in messages:
            match message.WhichOneof("part"):
                case "lane" if not started:
                    lanes.append(self._lane(message.lane, lanes))
                case "entries":
                    started = True
                    self._entries(message.entries)
                case "close":
                    self._close(message.close, lanes)
                    return self._complete(lanes)
                case _:
                    raise _out_of_order("a message is out of its order")
        raise _out_of_order("the release was not closed")

    def _lane(self, message: ReleaseLane, before: list[LaneSum]) -> LaneSum:
        policy = self._policy
        if message.lane >= self.spool.header.lanes or (before and message.lane <= before[-1].lane):
            raise invalid("the lanes do not ascend")
        if not 1 <= message.count <= policy.crypto.meters_per_lane(policy.layout.slots):
            raise invalid("a lane is empty or too full")
        parse_sum(message.ciphertext, policy.crypto, policy.layout.slots)
        return LaneSum(message.lane, message.count, message.ciphertext)

    def _entries(self, message: EntryChunk) -> None:
        chunk = message.entries
        if not 0 < len(chunk) <= CHUNK_BYTES or len(chunk) % ENTRY_BYTES:
            raise _out_of_order("a chunk is whole entries, at most 1 MiB")
        if message.offset != self.spool.size:
            raise MalformedInput(
                Reason.STREAM_PROTOCOL,
                "the chunk does not start where the last one ended",
                entry_bytes=str(self.spool.size),
            )
        examined = self._cohort.examine(chunk)
        try:
            self.spool.append(chunk)
        except OSError:
            raise _cannot_write() from None
        self._cohort.accept(chunk, examined)

    def _close(self, message: ReleaseClose, lanes: list[LaneSum]) -> None:
        self._cohort.check_complete(lanes)
        digest = release_digest(self.spool.header, lanes, self._cohort.digest.digest())
        if not digest == self.spool.digest == message.release_digest:
            raise MalformedInput(Reason.DIGEST_MISMATCH, "the release is not what its digest says")

    def _complete(self, lanes: list[LaneSum]) -> SpooledRelease:
        try:
            return self.spool.complete(lanes)
        except OSError:
            self.is_lost = True
            raise _cannot_write() from None


def _out_of_order(how: str) -> MalformedInput:
    return MalformedInput(Reason.STREAM_PROTOCOL, how)


def _cannot_write() -> Unavailable:
    return Unavailable(
        Reason.KEYHOLDER_UNAVAILABLE, "the release cannot be kept", retry_after_s=RETRY_S
    )
