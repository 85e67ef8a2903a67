"""Reading a whole release log: whether every record is lawful, and what was signed.

What is checked, record by record::

    a window is claimed once, by one release, and ends once: total, refusal or expiry
    a release is claimed under the parameters of an epoch that exists and is not destroyed
    a total is the claimed release's, signed by the pinned key for this city, with the noise
    that was claimed; a claim that says it has no room in its day's budget ends as a refusal
    the losses claimed in a UTC day are no more than the policy states, as far as it states any
    an epoch is created once and destroyed at most once; roster versions ascend
    refusals that spend a day's budget lock the key-holder: no claim until that lock is unlocked

and at the end the root over all records against the signed tree head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError

from gridveil.protocol.checkpoint import TreeHead
from gridveil.protocol.city import CityPolicy
from gridveil.protocol.errors import GridveilError, IntegrityLost, MalformedInput, Reason
from gridveil.protocol.layout import DIGEST_BYTES, Reader
from gridveil.protocol.log_records import claimed_noise
from gridveil.protocol.merkle import TreeHasher, leaf_hash
from gridveil.protocol.noise import NoiseClaim, NoisePolicy, Spent, day_of, satisfies
from gridveil.protocol.refusal_lock import RefusalLock
from gridveil.protocol.release import open_total
from gridveil.protocol.v1.log_pb2 import LogRecord, ReleaseIntent, WindowReleased

RECORDS = "records"
CHECKPOINT = "checkpoint"

_LENGTH_BYTES = 4
_LONGEST_RECORD = 65_536
_NOT_PERMITTED = {
    "intent": "claims a window although the key-holder is locked",
    "keyholder_unlocked": "unlocks a lock that there is not",
    "policy_stated": "states a budget of refusals that there cannot be",
}


class Lock(NamedTuple):
    """A time in which the key-holder claimed no window, as too many had been refused."""

    record: int
    """Index of the refusal that locked it."""
    recorded_at_ms: int
    """When, in Unix milliseconds of the key-holder's clock."""
    unlocked_by: int | None = None
    """Index of the record that unlocked it."""


class LogAudit:
    """Takes the records of one log in order; memory of the order of its windows and epochs."""

    def __init__(self, city_id: bytes, identity_key: bytes) -> None:
        self._city_id = city_id
        self._identity_key = identity_key
        self._tree = TreeHasher()
        self._claims: dict[int, bytes | None] = {}
        """By window the digest that claimed it; None once it is settled."""
        self._noise: dict[int, NoiseClaim] = {}
        """Of windows that are claimed and not settled."""
        self._parameters: dict[bytes, bytes] = {}
        """Epoch by the digest of its parameters, while it is not destroyed."""
        self._epochs: set[bytes] = set()
        self._stated: NoisePolicy | None = None
        self._spent: dict[int, Spent] = {}
        """Privacy loss of all claims of a UTC day, by the day."""
        self._roster_version = 0
        self._refusals = RefusalLock()
        self.kinds: Counter[str] = Counter()
        """Records by kind."""
        self.locks: dict[int, Lock] = {}
        """Every lock so far, by the index of the refusal that locked."""

    @property
    def size(self) -> int:
        """Records so far."""
        return self._tree.size

    def add(self, payload: bytes) -> LogRecord:
        """The next record; LOG_CORRUPT if it may not follow those before it."""
        try:
            record = LogRecord.FromString(payload)
        except DecodeError:
            raise self._corrupt("is not readable") from None
        kind = record.WhichOneof("event")
        if kind is None:
            raise self._corrupt("is of a kind that this version does not know")
        self._demand(self._refusals.permits(record), _NOT_PERMITTED.get(kind, ""))
        self._check(kind, record)
        self._note_lock(record)
        self.kinds[kind] += 1
        self._tree.append(leaf_hash(payload))
        return record

    def check(self, head: TreeHead) -> None:
        """LOG_CORRUPT unless the records so far are those under a tree head."""
        if (self._tree.size, self._tree.root()) != (head.size, head.root):
            raise IntegrityLost(
                Reason.LOG_CORRUPT, "the records of the release log are not those that were signed"
            )

    def _check(self, kind: str, record: LogRecord) -> None:
        match kind:
            case "intent":
                self._claim(record.intent.window_start, record.intent.release_digest)
                self._spend(record.intent.window_start, self._claimed_noise(record.intent))
                self._demand(
                    record.intent.parameters_digest in self._parameters,
                    "claims a release of an epoch that there is not",
                )
            case "released":
                self._settle(record.released.window_start, self._digest(record.released))
            case "refused":
                window, over_budget = record.refused.window_start, record.refused.over_budget
                self._settle(window, record.refused.release_digest)
                self._demand(
                    self._noise.pop(window).is_over_budget == over_budget,
                    "says otherwise of the privacy budget than the claim",
                )
            case "expired":
                self._claim(record.expired.window_start, bytes(DIGEST_BYTES))
                self._claims[record.expired.window_start] = None
            case "epoch_created":
                created = record.epoch_created
                self._demand(created.epoch_id not in self._epochs, "creates an epoch again")
                self._epochs.add(created.epoch_id)
                self._parameters[created.parameters_digest] = created.epoch_id
            case "epoch_destroyed":
                self._destroy(record.epoch_destroyed.epoch_id)
            case "policy_stated":
                self._state(record.policy_stated.policy)
            case "roster_changed":
                version = record.roster_changed.version
                self._demand(version > self._roster_version, "goes back in the roster")
                self._roster_version = version

    def _note_lock(self, record: LogRecord) -> None:
        before, self._refusals = self._refusals, self._refusals.after(self.size, record)
        if before.locked_at == self._refusals.locked_at:
            return
        if before.locked_at is None:
            self.locks[self.size] = Lock(self.size, record.recorded_at_ms)
        else:
            opened = self.locks[before.locked_at]._replace(unlocked_by=self.size)
            self.locks[before.locked_at] = opened

    def _claim(self, window: int, digest: bytes) -> None:
        self._demand(window not in self._claims, "claims a window again")
        self._demand(len(digest) == DIGEST_BYTES, "claims a window for no release")
        self._claims[window] = digest

    def _settle(self, window: int, digest: bytes) -> None:
        claimed = self._claims.get(window)
        self._demand(
            claimed is not None and claimed == digest, "settles a window that it has not claimed"
        )
        self._claims[window] = None

    def _digest(self, released: WindowReleased) -> bytes:
        signed = released.total
        try:
            total = open_total(signed.total, signed.signature, self._identity_key)
        except GridveilError:
            raise self._corrupt("has a total that the key-holder did not sign") from None
        self._demand(
            (total.city_id, total.window_start) == (self._city_id, released.window_start),
            "has the total of another city or window",
        )
        claimed = self._noise.pop(total.window_start, NoiseClaim())
        self._demand(
            not claimed.is_over_budget and claimed.noise == total.noise,
            "has a total with other noise than was claimed",
        )
        return total.release_digest

    def _spend(self, window: int, claimed: NoiseClaim) -> None:
        self._noise[window] = claimed
        if claimed.noise is None:
            return
        spent, stated = self._spent.get(day_of(window), Spent()), self._stated
        if stated is not None and stated.window.mechanism is claimed.mechanism:
            # What is stated is an upper bound: epochs may have been signed with less.
            lawful = satisfies(claimed.noise, stated.window)
            policy = replace(stated, window=claimed.noise) if lawful else stated
            self._demand(lawful and spent.affords(policy), "spends more privacy than is stated")
        self._spent[day_of(window)] = spent.plus(claimed)

    def _state(self, policy: bytes) -> None:
        reader = Reader(policy, "stated policy")
        try:
            self._stated = CityPolicy.read(reader).noise
            reader.end()
        except GridveilError:
            raise self._corrupt("states a policy that is none") from None

    def _claimed_noise(self, intent: ReleaseIntent) -> NoiseClaim:
        try:
            return claimed_noise(intent)
        except GridveilError:
            raise self._corrupt("claims noise that is none") from None

    def _destroy(self, epoch_id: bytes) -> None:
        known = [digest for digest, epoch in self._parameters.items() if epoch == epoch_id]
        self._demand(bool(known), "destroys an epoch that there is not")
        for digest in known:
            del self._parameters[digest]

    def _demand(self, lawful: bool, how: str) -> None:
        if not lawful:
            raise self._corrupt(how)

    def _corrupt(self, how: str) -> IntegrityLost:
        return IntegrityLost(Reason.LOG_CORRUPT, f"record {self.size} of the release log {how}")


def payloads_in(folder: Path) -> Iterator[bytes]:
    """The records in a published log's folder, without their chain: the root covers them.

    Raises:
        IntegrityLost: LOG_CORRUPT if a record is cut short.
        MalformedInput: CONFIG_INVALID if the folder has no log.
    """
    try:
        file = (folder / RECORDS).open("rb")
    except OSError:
        raise MalformedInput(Reason.CONFIG_INVALID, "the folder has no release log") from None
    with file:
        while prefix := file.read(_LENGTH_BYTES + DIGEST_BYTES):
            size = int.from_bytes(prefix[:_LENGTH_BYTES], "little")
            payload = file.read(size) if size <= _LONGEST_RECORD else b""
            if len(prefix) != _LENGTH_BYTES + DIGEST_BYTES or len(payload) != size or not size:
                raise IntegrityLost(Reason.LOG_CORRUPT, "a record of the release log is cut short")
            yield payload
