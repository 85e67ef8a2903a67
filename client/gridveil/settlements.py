"""Settled windows as a client sees them: verified outcomes, their pages, and a watch's place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from google.protobuf.message import DecodeError

from gridveil.log_view import LogView
from gridveil.profile import Profile
from gridveil.protocol.checkpoint import Checkpoint
from gridveil.protocol.city import CityParameters
from gridveil.protocol.errors import MalformedInput, NotAuthentic, Reason
from gridveil.protocol.log_records import settled_by
from gridveil.protocol.merkle import leaf_hash, verify_inclusion
from gridveil.protocol.noise import Noise
from gridveil.protocol.release import Total, open_total
from gridveil.protocol.v1 import totals_pb2
from gridveil.protocol.v1.log_pb2 import LogRecord
from gridveil.protocol.windows import EXPIRY_S
from gridveil.reconnection import Reconnection

PAGE_SIZE = 500

_LOOK_BACK_S = 2 * EXPIRY_S
"""A window this much older than one that was settled is settled too: by then it is expired."""


class NotReleasedReason(StrEnum):
    """Why a settled window has no total."""

    REFUSED = "REFUSED"
    """The key-holder refused; one word for every cause but the last."""
    EXPIRED = "EXPIRED"
    """Not settled within its time."""
    BUDGET_EXHAUSTED = "BUDGET_EXHAUSTED"
    """Refused unopened: other windows of its day had spent the city's privacy budget."""


@dataclass(frozen=True)
class ReleasedTotal:
    """A settled window with its verified total. Sums are in each register's unit.

    With noise (:attr:`noise`) a sum is off by a random amount, and may be negative.
    """

    total: Total
    encoded: bytes
    """The canonical bytes that ``signature`` covers; keep both to prove the total to others."""
    signature: bytes

    @property
    def window_start(self) -> int:
        """Unix seconds UTC."""
        return self.total.window_start

    @property
    def count(self) -> int:
        """Meters in the total."""
        return self.total.count

    @property
    def coverage(self) -> float:
        """Meters in the total by meters enrolled, 0 to 1."""
        return self.total.coverage

    @property
    def noise(self) -> Noise | None:
        """Mechanism and privacy loss of the noise in the sums; None: they are exact."""
        return self.total.noise

    def deviations(self, parameters: CityParameters) -> dict[str, float]:
        """Standard deviation of the noise in each register's sum, in its unit; 0 if it is exact.

        Args:
            parameters: of the total's window; DIGEST_MISMATCH if they are others.
        """
        if parameters.digest != self.total.parameters_digest:
            raise MalformedInput(Reason.DIGEST_MISMATCH, "these are not the total's parameters")
        registers, noise = parameters.policy.registers, self.noise
        return {
            register.name: noise.deviation(register.bound, len(registers)) if noise else 0.0
            for register in registers
        }

    def sum(self, register: str) -> int:
        """City-wide sum of a register; KeyError if the city has no such register."""
        return {entry.name: entry.sum for entry in self.total.registers}[register]

    def mean(self, register: str) -> float:
        """Mean of a register a meter in the total; KeyError if there is no such register."""
        return self.sum(register) / self.count


@dataclass(frozen=True)
class NotReleased:
    """A settled window that has no total and never will."""

    window_start: int
    reason: NotReleasedReason


Outcome = ReleasedTotal | NotReleased

_REASONS = {
    totals_pb2.NOT_RELEASED_REASON_REFUSED: NotReleasedReason.REFUSED,
    totals_pb2.NOT_RELEASED_REASON_EXPIRED: NotReleasedReason.EXPIRED,
    totals_pb2.NOT_RELEASED_REASON_BUDGET_EXHAUSTED: NotReleasedReason.BUDGET_EXHAUSTED,
}


class OutcomeOpener:
    """Turns messages into outcomes, only if the release log says so.

    A total's signature, city and window are checked as well. Whether a checkpoint is one of the
    log that was seen before is for the caller to find out with :attr:`view`, before :meth:`open`.
    """

    def __init__(self, profile: Profile) -> None:
        self._city_id = profile.city_id
        self._identity_key = profile.identity_key
        self.view = LogView(profile)

    def checkpoint(self, message: totals_pb2.WindowOutcome) -> Checkpoint:
        """The checkpoint that an outcome's proof is under.

        Raises:
            NotAuthentic: PROOF_INVALID if there is none; else as :meth:`LogView.open`.
        """
        if not message.proof.checkpoint:
            raise NotAuthentic(Reason.PROOF_INVALID, "there is no proof that the log says so")
        return self.view.open(message.proof.checkpoint)

    def open(self, message: totals_pb2.WindowOutcome, window_start: int | None = None) -> Outcome:
        """The outcome, of ``window_start`` if it is given, else of the window it names.

        Raises:
            NotAuthentic: KEY_NOT_PINNED for a total that the pinned key-holder did not sign, or
                not for this city and window; PROOF_INVALID if the log does not say so.
            MalformedInput: MALFORMED_MESSAGE.
            Unavailable: NOT_WITNESSED.
        """
        if window_start not in (None, message.window_start):
            raise _not_pinned()
        self._check_proof(message)
        if message.WhichOneof("outcome") == "total":
            return self._open_total(message)
        return NotReleased(message.window_start, _REASONS[message.not_released])

    def _check_proof(self, message: totals_pb2.WindowOutcome) -> None:
        """The outcome is what a record says that is under the checkpoint."""
        proof, head = message.proof, self.checkpoint(message).head
        leaf = leaf_hash(proof.record)
        verify_inclusion(leaf, proof.index, head.size, proof.hashes, head.root)
        try:
            recorded = settled_by(LogRecord.FromString(proof.record))
        except DecodeError:
            recorded = None
        shown = totals_pb2.WindowOutcome()
        shown.CopyFrom(message)
        shown.ClearField("proof")
        if recorded != shown:
            raise NotAuthentic(Reason.PROOF_INVALID, "the log says otherwise of this window")

    def _open_total(self, message: totals_pb2.WindowOutcome) -> ReleasedTotal:
        signed = message.total
        total = open_total(signed.total, signed.signature, self._identity_key)
        if (total.city_id, total.window_start) != (self._city_id, message.window_start):
            raise _not_pinned()
        return ReleasedTotal(total, signed.total, signed.signature)


class Pages:
    """Where a listing is: the next request, and the check of each answer."""

    def __init__(
        self, opener: OutcomeOpener, from_window: int, until_window: int, page_size: int
    ) -> None:
        self._opener = opener
        self._next: totals_pb2.ListTotalsRequest | None = totals_pb2.ListTotalsRequest(
            from_window=from_window, until_window=until_window, page_size=page_size
        )
        self._newest = -1

    def next_request(self) -> totals_pb2.ListTotalsRequest | None:
        """What to ask for next; None after the last page."""
        return self._next

    def open(self, page: totals_pb2.ListTotalsResponse) -> Iterator[Outcome]:
        """The outcomes of the answer to the last request; MALFORMED_MESSAGE unless they ascend."""
        if page.next_page_token and not page.outcomes:
            raise MalformedInput(Reason.MALFORMED_MESSAGE, "an empty page is the last one")
        if self._next is not None:
            self._next.page_token = page.next_page_token
        if not page.next_page_token:
            self._next = None
        for message in page.outcomes:
            if message.window_start <= self._newest:
                raise MalformedInput(Reason.MALFORMED_MESSAGE, "the windows do not ascend")
            self._newest = message.window_start
            yield self._opener.open(message)


class WatchState(Reconnection):
    """What was delivered, from where to resume, and how long to wait before that.

    Resuming asks again for the windows that may have settled out of order meanwhile, and leaves
    out those delivered already.
    """

    def __init__(self, from_window: int, give_up_after_s: float | None) -> None:
        super().__init__(give_up_after_s)
        self._from = from_window
        self._delivered: set[int] = set()

    @property
    def resume_from(self) -> int:
        """``WatchTotalsRequest.from_window`` for the next connection."""
        if not self._delivered:
            return self._from
        return max(self._from, max(self._delivered) - _LOOK_BACK_S)

    def is_new(self, window_start: int) -> bool:
        """Whether to deliver this window, which counts as delivered from now on."""
        self.received()
        if window_start in self._delivered:
            return False
        self._from = self._from or window_start
        self._delivered.add(window_start)
        oldest = self.resume_from
        self._delivered = {window for window in self._delivered if window >= oldest}
        return True


def _not_pinned() -> NotAuthentic:
    return NotAuthentic(Reason.KEY_NOT_PINNED, "the total is of another city or window")
