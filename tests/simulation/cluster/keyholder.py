"""The key-holder's contract, without its cryptography: one digest a window, and just these meters.

It stands at the seam of ``KeyHolderClient``. What is released is handed to the oracle, which sees
by the residues which meters were counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nacl.signing import SigningKey

from gridveil.protocol.city import CityParameters, CityPolicy, Epoch
from gridveil.protocol.errors import MalformedInput, Reason, WrongState
from gridveil.protocol.release import (
    ENTRY_BYTES,
    EntriesDigest,
    LaneSum,
    ReleaseHeader,
    release_digest,
)
from gridveil.protocol.roster import Member, RosterVersion, roster_digest
from gridveil.protocol.v1 import keyholder_pb2
from gridveil_services.aggregator.city import SignedParameters
from gridveil_services.aggregator.upstream import KeyHolderClient, RosterChange
from tests.support.reports import CITY_ID

if TYPE_CHECKING:
    from tests.simulation.cluster.process import Process
    from tests.simulation.cluster.world import World

MIN_COHORT = 5
"""Small, so that a window after many faults still has a total."""


@dataclass
class Released:
    """What a release stream said."""

    header: ReleaseHeader
    digest: bytes
    lanes: list[LaneSum] = field(default_factory=list)
    entries: bytearray = field(default_factory=bytearray)
    closed: bool = False

    def computed_digest(self) -> bytes:
        entries = EntriesDigest()
        entries.update(bytes(self.entries))
        return release_digest(self.header, self.lanes, entries.digest())


class ModelKeyHolder:
    """One, and all that it ever said."""

    def __init__(
        self, world: World, policy: CityPolicy, members: list[Member], first: int, end: int
    ) -> None:
        source = world.source
        self._world = world
        self.up = True
        self.identity = SigningKey(source.randbytes(32))
        epoch = Epoch(source.randbytes(16), first, end, source.randbytes(32), b"public key")
        self.parameters = CityParameters(policy, epoch)
        self._signed = SignedParameters(
            self.parameters, self.parameters.encode(), self.parameters.sign(self.identity)
        )
        self._members = sorted(members)
        self._head = RosterVersion(
            CITY_ID, 1, first, len(members), roster_digest(iter(self._members))
        )
        self._head_signature = self._head.sign(self.identity)
        self.pinned: dict[int, bytes] = {}
        self._ahead: dict[int, set[bytes]] = {}

    def signed_parameters(self) -> SignedParameters:
        return self._signed

    def roster_change(self, known: int) -> RosterChange:
        added = [] if known else self._members
        return RosterChange(self._head, self._head_signature, [], list(added))

    def precheck(self, start: int, entries: bytes) -> int:
        held = self._ahead.setdefault(start, set())
        held.update(entries[at : at + ENTRY_BYTES] for at in range(0, len(entries), ENTRY_BYTES))
        return len(held)

    def progress(self, start: int, digest: bytes) -> int | None:
        self._check_pin(start, digest)
        return None if start in self.pinned else 0

    def release(self, process: Process, messages: Iterator[keyholder_pb2.ReleaseMessage]) -> bytes:
        """Settle a window, once."""
        released = _read(messages)
        header = released.header
        self._check_pin(header.window_start, released.digest)
        if header.window_start in self.pinned:
            return released.digest
        if not released.closed or released.computed_digest() != released.digest:
            raise MalformedInput(Reason.DIGEST_MISMATCH, "the release is not what it says")
        if self._world.now < self.parameters.policy.rules.end(header.window_start):
            raise WrongState(Reason.WINDOW_OPEN, "the window is not over", retry_after_s=1)
        if header.count < MIN_COHORT:
            raise WrongState(Reason.COHORT_TOO_SMALL, "too few meters reported")
        self.pinned[header.window_start] = released.digest
        self._ahead.pop(header.window_start, None)
        self._world.oracle.released(process, released)
        return released.digest

    def _check_pin(self, start: int, digest: bytes) -> None:
        if self.pinned.get(start, digest) != digest:
            self._world.oracle.violated(f"R1: a second set of reports for window {start}")


class Link(KeyHolderClient):
    """One process's way to it."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    def parameters(self, window_start: int) -> SignedParameters:
        keyholder = self._world.keyholder
        found: SignedParameters = self._call(keyholder.signed_parameters)
        return found

    def roster(self, known_version: int, window_start: int) -> RosterChange:
        keyholder = self._world.keyholder
        found: RosterChange = self._call(lambda: keyholder.roster_change(known_version))
        return found

    def precheck(
        self, window_start: int, parameters_digest: bytes, roster_version: int, entries: bytes
    ) -> int:
        keyholder = self._world.keyholder
        held: int = self._call(lambda: keyholder.precheck(window_start, entries))
        return held

    def progress(self, window_start: int, release_digest: bytes) -> int | None:
        keyholder = self._world.keyholder
        held: int | None = self._call(lambda: keyholder.progress(window_start, release_digest))
        return held

    def release(self, messages: Iterator[keyholder_pb2.ReleaseMessage]) -> bytes:
        keyholder = self._world.keyholder
        digest: bytes = self._call(lambda: keyholder.release(self._process, messages))
        return digest

    def close(self) -> None:
        pass

    def _call(self, action: Callable[[], Any]) -> Any:
        return self._world.network.call_keyholder(self._process, action)


def _read(messages: Iterator[keyholder_pb2.ReleaseMessage]) -> Released:
    first = next(messages).header
    header = ReleaseHeader(
        CITY_ID,
        first.parameters_digest,
        first.window_start,
        first.roster_version,
        first.lanes,
        first.count,
    )
    released = Released(header, first.release_digest)
    for message in messages:
        if message.HasField("lane"):
            lane = message.lane
            released.lanes.append(LaneSum(lane.lane, lane.count, lane.ciphertext))
        elif message.HasField("entries"):
            released.entries += message.entries.entries
        else:
            released.closed = message.close.release_digest == released.digest
    return released
