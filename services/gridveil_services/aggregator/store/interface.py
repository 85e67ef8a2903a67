"""What the aggregator asks of its store, and what the store owes it.

The unit of atomicity, and later of sharding, is the lane of a window: what one lane's meters
reported, the sum of their ciphertexts and the count change together or not at all. Everything
that decides about a report in another way than "is it here already" lies outside.

Every method may raise :class:`StoreFailed` (stop: nothing may be acknowledged any more) or
``Unavailable`` with STORE_FULL or STORE_UNAVAILABLE (nothing was changed; later may do). Writing
methods are called from one thread at a time; reading methods from any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

from gridveil.protocol.ciphertext import Residues
from gridveil.protocol.city import CityParameters
from gridveil.protocol.errors import Reason, Unavailable
from gridveil.protocol.release import LaneSum
from gridveil.protocol.roster import Member, RosterVersion


class StoreFailed(Unavailable):
    """The store cannot be trusted until it was opened and checked again."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.STORE_UNAVAILABLE, message, retry_after_s=5)


class Phase(IntEnum):
    """How far a window has come. Phases only go up; all from RELEASED on are final."""

    OPEN = 1
    SEALED = 2
    RELEASED = 3
    REFUSED = 4
    EXPIRED = 5
    EMPTY = 6
    """Nobody reported."""
    POISONED = 7
    """What was stored of it is not whole: it takes no report and is never released."""

    @property
    def settled(self) -> bool:
        """Whether this is final."""
        return self > Phase.SEALED


@dataclass(frozen=True)
class Window:
    """What is fixed of a window before its first report, and its phase."""

    start: int
    end: int
    """Start of the next window, Unix seconds."""
    closes: int
    """From when reports are refused, Unix seconds."""
    parameters_digest: bytes
    roster_version: int
    enrolled: int
    lanes: int
    lane_capacity: int
    """Most reports in one lane."""
    parameter_set: str
    slots: int
    phase: Phase = Phase.OPEN


class StoredReport(NamedTuple):
    """What is kept of a report: never its ciphertext."""

    meter_id: bytes
    digest: bytes
    entry: bytes
    """Canonical 196 bytes (``release.Entry``)."""


class StoredReceipt(NamedTuple):
    """What a meter was told of its report."""

    digest: bytes
    accepted_at_ms: int


class LaneBatch(NamedTuple):
    """Reports of distinct meters of one lane, and the sum of their ciphertexts."""

    window_start: int
    lane: int
    reports: Sequence[StoredReport]
    sum: Residues
    parameters_digest: bytes
    """What they were made for."""


class Committed(NamedTuple):
    """The batch is durable, all of it."""

    accepted_at_ms: int


class Known(NamedTuple):
    """Nothing of the batch was stored, because these meters' reports are here already."""

    receipts: Mapping[bytes, StoredReceipt]


class LaneFull(NamedTuple):
    """Nothing of the batch was stored, because only ``room`` more reports fit the lane."""

    room: int


class NotOpen(NamedTuple):
    """Nothing of the batch was stored, because its window takes no report any more, or not yet."""

    phase: Phase | None


class Moved(NamedTuple):
    """Nothing of the batch was stored, because its window is under other parameters."""


Outcome = Committed | Known | LaneFull | NotOpen | Moved


class Equivocation(NamedTuple):
    """Two different reports that one meter signed for one window."""

    window_start: int
    meter_id: bytes
    first: bytes
    """Entry of the report that stands."""
    second_parameters_digest: bytes
    second: bytes
    """Entry of the report that was refused."""


class MembershipRow(NamedTuple):
    """One enrolment: in force from version ``since`` until before version ``until``."""

    meter_id: bytes
    signing_key: bytes
    since: int
    until: int | None


class Store(Protocol):
    """Windows and the reports in them."""

    @property
    def leads(self) -> bool:
        """Whether it is this aggregator that seals and releases, of those that share the store."""
        ...

    def follow(self) -> bool:
        """Take over what other aggregators did to windows, and lead if nobody does.

        Returns:
            Whether this one leads now.

        Raises:
            Unavailable: it does not, then.
        """
        ...

    def open_window(self, window: Window, opens: int | None = None) -> Window:
        """Make a window known; what is stored of it first stands, and is returned.

        Args:
            window: its facts.
            opens: from when its reports are taken, Unix seconds; its start if not given.

        Raises:
            WrongState: WINDOW_CLOSED for a window whose state was forgotten: it never re-opens.
        """
        ...

    def move_window(self, window: Window) -> bool:
        """Put an open window without a report under other parameters; whether this call did it.

        A window that holds a report keeps the parameters that the report was made for.
        """
        ...

    def window(self, start: int) -> Window | None:
        """One window. Cheap: asked for every call."""
        ...

    def windows(self) -> Sequence[Window]:
        """Every window that is held, ascending."""
        ...

    def count(self, start: int) -> int:
        """Reports stored of a window, in all lanes."""
        ...

    def known(
        self,
        start: int,
        meter_ids: Sequence[bytes],
        lane_of: Callable[[bytes], int] | None = None,
    ) -> Mapping[bytes, StoredReceipt]:
        """Receipts of those of the meters whose report of the window is durable.

        Also after the window was sealed and settled, until it is forgotten.

        Args:
            start: the window.
            meter_ids: of meters.
            lane_of: the lane that a meter's report is in, if it is there. A store may look in this
                lane only; without it, it looks in all.
        """
        ...

    def commit(self, batches: Sequence[LaneBatch], accepted_at_ms: int) -> Sequence[Outcome]:
        """Store batches, and say in the same order what became of each.

        Of a batch, the reports, the lane's sum and its count become durable in one atomic step or
        not at all; batches of one call may share that step. Whoever is told :class:`Committed`
        will find the report after any crash. A meter has at most one report a window: earlier
        batches of the same call count.

        Raises:
            Unavailable: some of the batches may be stored; trying again tells.
        """
        ...

    def record_equivocation(
        self, start: int, lane: int, meter_id: bytes, parameters_digest: bytes, entry: bytes
    ) -> None:
        """Keep a report that contradicts the stored one, beside it; the first of its meter only.

        After the window is settled, when the first report's signature is deleted, nothing is kept.
        """
        ...

    def equivocations(self, start: int) -> Sequence[Equivocation]:
        """What was recorded, ascending by meter."""
        ...

    def seal(self, start: int) -> bool:
        """Compare-and-set from OPEN to SEALED; whether this call did it.

        After it returned, whoever called it, no sum, count or report of the window changes.
        """
        ...

    def vouched(self, start: int) -> bool:
        """Whether a sealed window holds all that any aggregator has acknowledged in it.

        Has this aggregator compare what it acknowledged itself. To be asked before each release:
        what is read of the window afterwards is what was vouched for.

        Raises:
            IntegrityLost: it does not, and never will.
        """
        ...

    def why_poisoned(self, start: int) -> str:
        """What happened to a poisoned window; '' if that is not known, or it is not poisoned."""
        ...

    def lane_sums(self, start: int) -> Sequence[LaneSum]:
        """Sums of the lanes with a report, ascending, of a sealed or released window.

        Raises:
            IntegrityLost: PARTIAL_CORRUPT if a stored sum is not what was written.
        """
        ...

    def entries(self, start: int) -> Iterator[bytes]:
        """All entries of a sealed window ascending by (lane, meter id), in pieces of whole entries.

        Raises:
            IntegrityLost: PARTIAL_CORRUPT.
        """
        ...

    def entries_after(self, start: int, after: int) -> tuple[bytes, int]:
        """Entries of a window that is not settled; those of a lane in the order of their commits.

        Args:
            start: the window.
            after: 0, or what the last call returned: its entries are not returned again.

        Returns:
            Some whole entries, a few megabytes at the most, and after which batch to go on. Without
            entries there are none yet; to go on after the same batch is right for those to come.

        Raises:
            IntegrityLost: PARTIAL_CORRUPT.
        """
        ...

    def settle(self, start: int, phase: Phase) -> bool:
        """Compare-and-set from SEALED to a final phase; whether this call did it.

        In the same step all entries are deleted, and the sums too unless the window was released.
        To POISONED from OPEN also.
        """
        ...

    def probe(self) -> None:
        """Raise what :meth:`commit` would now, as far as that can be known; stores nothing."""
        ...

    def forget(self, ended_before: int) -> int:
        """Delete everything of settled windows whose end is earlier; how many there were.

        Forgotten windows, and all before them, never open again.
        """
        ...


class Documents(Protocol):
    """What the key-holder signed, kept so that a restart works while it is away."""

    def save_parameters(
        self, parameters: CityParameters, document: bytes, signature: bytes
    ) -> None:
        """Keep signed city parameters; the same again changes nothing."""
        ...

    def parameters(self) -> Sequence[tuple[bytes, bytes]]:
        """Documents with their signatures, in the order they were saved."""
        ...

    def save_roster(
        self,
        head: RosterVersion,
        signature: bytes,
        removed: Sequence[bytes],
        added: Sequence[Member],
    ) -> None:
        """Keep a new version: ``removed`` leave, then ``added`` enter, in one atomic step."""
        ...

    def roster(self) -> tuple[RosterVersion, bytes] | None:
        """Head and signature of the newest version."""
        ...

    def members(self) -> Iterator[Member]:
        """Members of the newest version, ascending by meter id."""
        ...

    def memberships(self) -> Iterator[MembershipRow]:
        """Every enrolment, ascending by meter id and version."""
        ...

    def prune(self, ended_before: int) -> None:
        """Delete parameters whose epoch ended earlier and that no held window names."""
        ...
