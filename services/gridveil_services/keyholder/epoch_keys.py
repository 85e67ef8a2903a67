"""Epoch keys: made, kept, used to open sums and seals, and destroyed.

The only module that can decrypt. What it hands out are sums of slots; whoever asks for them has
claimed the window in the release log before. Keys shared with meters open seals at any time.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from contextlib import suppress

import numpy as np
import structlog
from tenseal import sealapi

from gridveil.encryption import encryption_parameters, saved, seal_array, seal_payload
from gridveil.protocol.ciphertext import parse_sum
from gridveil.protocol.city import CityParameters, CityPolicy, Epoch
from gridveil.protocol.decoding import (
    SlotCheckFailed,
    checked_slot_sums,
    decrypt_folded,
    slot_values,
)
from gridveil.protocol.errors import (
    GridveilError,
    IntegrityLost,
    MalformedInput,
    Reason,
    Unavailable,
)
from gridveil.protocol.layout import KEY_BYTES
from gridveil.protocol.parameter_sets import ParameterSet
from gridveil.protocol.release import LaneSum
from gridveil.protocol.roster import Member
from gridveil.protocol.sealing import shared_key, x25519_public
from gridveil.protocol.signing import SigningKey
from gridveil.protocol.v1.log_pb2 import DestructionCause
from gridveil_services.keyholder.epoch_life import Life, border, gap, is_spent, life_of, serving
from gridveil_services.keyholder.epoch_store import EpochStore, Secrets, SignedParameters
from gridveil_services.keyholder.key_check import is_sound_key
from gridveil_services.keyholder.ledger import Ledger, LoggedEpoch
from gridveil_services.keyholder.membership import Membership

_log = structlog.get_logger()

_MOST_KEY_PAIRS = 16
"""Made for one epoch; about one in 5,000 is not sound."""

_SECRET_KEY_HEAD_BYTES = 32 + 8 + 8
"""Of SEAL's secret key before its residues: parameters id, coefficient count, scale."""


class OpeningFailed(Exception):
    """A sum or a seal is not what meters made. Never crosses the wire: the refusal is uniform."""


class EpochKeys:
    """The keys of one epoch in use."""

    def __init__(self, signed: SignedParameters, keys: Secrets) -> None:
        self.signed = signed
        self.parameters = signed.parameters
        self.decryptions: Counter[tuple[int, int]] = Counter()
        """By window and lane: how often it was decrypted since the process started."""
        epoch, crypto = signed.parameters.epoch, signed.parameters.policy.crypto
        if x25519_public(keys.sealing) != epoch.sealing_key or len(keys.ckks) != 8 * crypto.degree:
            raise IntegrityLost(Reason.PARTIAL_CORRUPT, "the epoch's secrets are not its own")
        self._sealing = keys.sealing
        self._residues = [int(residue) for residue in np.frombuffer(keys.ckks, dtype="<u8")]
        self._shared = _SharedKeys()
        self._next_place = 0
        """Of meters before it every shared key was derived, or is not worth it any more."""

    def destroy(self) -> None:
        """Forget the secrets: whoever still holds this object opens nothing with it any more."""
        self._residues, self._sealing, self._shared = [], b"", _SharedKeys()

    def shared_key(self, place: int, member: Member) -> bytes:
        """The key under which a meter sealed its commitments; computed once an epoch.

        ``place``: of the meter among all that were ever enrolled.

        Raises:
            OpeningFailed: the epoch was destroyed.
        """
        # Of before a destruction, if one comes meanwhile: nothing new is kept of it then.
        shared, sealing = self._shared, self._sealing
        self._check_alive()
        key = shared.get(place)
        if key is None:
            parameters = self.parameters
            key = shared_key(
                sealing,
                member.sealing_key,
                parameters.policy.city_id,
                parameters.epoch.epoch_id,
                member.meter_id,
            )
            shared.put(place, key)
        return key

    def derive_ahead(self, members: Membership, most: int) -> int:
        """Derive up to ``most`` shared keys before a release needs them; how many were.

        Raises:
            OpeningFailed: the epoch was destroyed.
        """
        derived = 0
        while derived < most and self._next_place < len(members):
            place, self._next_place = self._next_place, self._next_place + 1
            if not members.is_withdrawn(place):
                self.shared_key(place, members.at(place))
                derived += 1
        return derived

    def slot_sums(self, window_start: int, lane: LaneSum) -> list[int]:
        """The sum of every slot over the reports of a lane.

        Raises:
            OpeningFailed: some slot is no sum of bytes, or the epoch was destroyed.
        """
        secret = self._residues
        self._check_alive()
        self.decryptions[window_start, lane.lane] += 1
        crypto, slots = self.parameters.policy.crypto, self.parameters.policy.layout.slots
        residues = parse_sum(lane.ciphertext, crypto, slots)
        coefficients = decrypt_folded(residues, secret, crypto, slots)
        try:
            return checked_slot_sums(slot_values(coefficients, crypto, slots), lane.count)
        except SlotCheckFailed:
            raise OpeningFailed from None

    def _check_alive(self) -> None:
        if not self._residues:
            raise OpeningFailed


class EpochRing:
    """All epochs that still have keys; the current and the next one always do. Thread-safe."""

    def __init__(
        self,
        store: EpochStore,
        ledger: Ledger,
        identity: SigningKey,
        policy: CityPolicy,
        epoch_length: int,
    ) -> None:
        """``policy`` and ``epoch_length`` shape the epochs made from now on."""
        self._store = store
        self._ledger = ledger
        self._identity = identity
        self._policy = policy
        self._length = epoch_length
        self._lock = threading.RLock()
        self._keys: dict[bytes, EpochKeys] = {}
        self._condemned: set[bytes] = set()
        """Destroyed by the log, while their files could not be destroyed yet."""
        self._decryptions: Counter[tuple[int, int]] = Counter()
        """Made with keys that are destroyed by now."""

    def load(self) -> None:
        """Read what is kept and compare it with the log; destroy what the log says is destroyed.

        Raises:
            IntegrityLost: PARTIAL_CORRUPT for keys that are damaged or missing; LOG_CORRUPT for
                keys that the log knows nothing of.
            MalformedInput: CONFIG_INVALID for another window length than the city was made with.
        """
        logged, kept = self._ledger.epochs(), set(self._store.ids())
        unknown = kept - logged.keys()
        if len(unknown) > 1:
            raise IntegrityLost(Reason.LOG_CORRUPT, "the release log lacks epochs that exist")
        for epoch_id in unknown:  # its creation was cut short: nobody has seen it
            self._store.delete(epoch_id)
        for epoch in logged.values():
            if not epoch.destroyed:
                self._keys[epoch.epoch_id] = self._load(epoch)
            elif epoch.epoch_id in kept:  # its destruction was cut short
                self._store.delete(epoch.epoch_id)

    def ensure(self, now: float) -> None:
        """Make the current and the next epoch, if they are missing."""
        with self._lock:
            window = self._policy.rules.start_at(now)
            for _ in range(2):
                epochs = self._ledger.epochs().values()
                epoch = serving(epochs, window)
                if epoch is not None:
                    window = epoch.end_window
                else:
                    window = self._create(*gap(epochs, window, self._length))

    def retire(self, epoch_id: bytes, cause: DestructionCause, now: float) -> None:
        """Destroy an epoch's secrets, and make the successor that serves its further windows.

        In this order, each step made good by the next tick or start if it is cut short: this
        process forgets the secrets; the log says that they are destroyed, and where the successor
        begins; they are destroyed on disk; the successor is made. The same again changes nothing.
        A disk that fails after the second step is logged, and tried again with every tick. That a
        failure budget is spent is an alarm.

        Raises:
            Unavailable: KEYHOLDER_UNAVAILABLE if the log cannot be written. Nothing is opened
                then until a restart, which retires an epoch that is spent before anything else.
        """
        with self._lock:
            epoch = self._ledger.epochs()[epoch_id]
            if cause == DestructionCause.DESTRUCTION_CAUSE_BUDGET_SPENT and not epoch.destroyed:
                spent = {"epoch": epoch_id.hex(), "failures": epoch.failures}
                _log.error("failure budget spent", **spent)
            self._destroy(epoch, cause, border(epoch, self._policy.rules, now))
            try:
                self.ensure(now)
            except (GridveilError, OSError) as error:
                _log.error("no successor could be made yet", cause=type(error).__name__)

    def retire_spent(self, now: float) -> None:
        """Retire the epochs whose failure budget is spent, as they signed it or as it is today."""
        with self._lock:
            logged, own = self._ledger.epochs(), self._policy.failure_budget
            for epoch_id, keys in list(self._keys.items()):
                budget = min(keys.parameters.policy.failure_budget, own)
                if is_spent(logged[epoch_id], budget):
                    cause = DestructionCause.DESTRUCTION_CAUSE_BUDGET_SPENT
                    self.retire(epoch_id, cause, now)

    def destroy_done(self, now: float, first_in_force: int | None) -> None:
        """Destroy the keys that no window needs any more, and what could not be destroyed before.

        Args:
            now: Unix seconds.
            first_in_force: first window that a roster is in force for, if there is any.
        """
        with self._lock:
            for epoch_id in list(self._condemned):
                self._erase(epoch_id)
            for epoch_id, epoch in self._ledger.epochs().items():
                retired = epoch_id in self._keys and life_of(epoch, now) is Life.RETIRED
                if retired and self._is_done(epoch, first_in_force):
                    cause = DestructionCause.DESTRUCTION_CAUSE_SETTLED
                    self._destroy(epoch, cause, epoch.end_window)

    def derive_ahead(self, members: Membership, most: int) -> None:
        """Derive up to ``most`` keys shared with meters before a release needs them.

        The oldest epoch comes first: it is the one whose windows are released next.
        """
        epochs = sorted(self._ledger.epochs().values(), key=lambda epoch: epoch.first_window)
        for epoch in epochs:
            keys = self._keys.get(epoch.epoch_id)
            if keys is not None and most > 0:
                with suppress(OpeningFailed):  # destroyed meanwhile
                    most -= keys.derive_ahead(members, most)

    def for_window(self, window_start: int) -> SignedParameters | None:
        """The signed parameters of the epoch that serves a window, if its keys exist."""
        epoch = serving(self._ledger.epochs().values(), window_start)
        keys = self._keys.get(epoch.epoch_id) if epoch else None
        return keys.signed if keys else None

    def by_digest(self, parameters_digest: bytes) -> EpochKeys | None:
        """The keys of the epoch with these parameters, if they exist."""
        for keys in list(self._keys.values()):
            if keys.parameters.digest == parameters_digest:
                return keys
        return None

    def policies(self) -> list[CityPolicy]:
        """What the epochs with keys were signed with."""
        with self._lock:
            return [keys.parameters.policy for keys in self._keys.values()]

    def decryptions(self, window_start: int) -> int:
        """How often a lane of a window was decrypted at the most since the process started."""
        found = [keys.decryptions for keys in list(self._keys.values())] + [self._decryptions]
        return max((n for of in found for (w, _), n in of.items() if w == window_start), default=0)

    def _destroy(self, epoch: LoggedEpoch, cause: DestructionCause, end_window: int) -> None:
        keys = self._keys.pop(epoch.epoch_id, None)
        if keys is not None:
            keys.destroy()
            self._decryptions += keys.decryptions
        if not epoch.destroyed:
            self._ledger.epoch_destroyed(epoch.epoch_id, cause, end_window)
            self._condemned.add(epoch.epoch_id)
        if epoch.epoch_id in self._condemned:
            self._erase(epoch.epoch_id)

    def _erase(self, epoch_id: bytes) -> None:
        try:
            self._store.delete(epoch_id)
        except OSError as error:
            _log.error(
                "epoch keys cannot be destroyed", epoch=epoch_id.hex(), cause=type(error).__name__
            )
            return
        self._condemned.discard(epoch_id)
        _log.info("epoch keys destroyed", epoch=epoch_id.hex())

    def _is_done(self, epoch: LoggedEpoch, first_in_force: int | None) -> bool:
        """Whether each window of an epoch is settled, expired, or before any roster."""
        if first_in_force is None:
            return True
        windows = range(epoch.first_window, epoch.end_window, self._policy.window_length)
        return all(w < first_in_force or self._ledger.is_final(w) for w in windows)

    def _load(self, logged: LoggedEpoch) -> EpochKeys:
        signed, keys = self._store.load(logged.epoch_id)
        if signed.parameters.digest != logged.parameters_digest:
            raise IntegrityLost(Reason.PARTIAL_CORRUPT, "an epoch is not the one in the log")
        if signed.parameters.policy.window_length != self._policy.window_length:
            raise MalformedInput(
                Reason.CONFIG_INVALID, "window_length cannot be changed: windows would overlap"
            )
        return EpochKeys(signed, keys)

    def _create(self, first_window: int, end_window: int) -> int:
        """Make an epoch for these windows; its end."""
        if self._ledger.failed:
            # Keys that are not logged would be made anew for every question.
            raise Unavailable(Reason.KEYHOLDER_UNAVAILABLE, "no epoch can be made for now")
        sealing = secrets.token_bytes(KEY_BYTES)
        public, residues = sound_ckks_keys(self._policy.crypto, self._policy.layout.slots)
        epoch = Epoch(
            secrets.token_bytes(16), first_window, end_window, x25519_public(sealing), public
        )
        parameters = CityParameters(self._policy, epoch)
        signed = SignedParameters(parameters, parameters.sign(self._identity))
        keys = Secrets(sealing, residues)
        self._store.save(signed, keys)
        self._ledger.epoch_created(parameters)
        self._keys[epoch.epoch_id] = EpochKeys(signed, keys)
        return end_window


def sound_ckks_keys(crypto: ParameterSet, slots: int) -> tuple[bytes, bytes]:
    """As :func:`generate_ckks_keys`; only pairs that the key check accepts.

    Raises:
        Unavailable: KEYHOLDER_UNAVAILABLE if none of many is, which chance does not explain.
    """
    for _ in range(_MOST_KEY_PAIRS):
        public, residues = generate_ckks_keys(crypto)
        if is_sound_key(public, residues, crypto, slots):
            return public, residues
        _log.warning("a key pair with a noisy slot was thrown away")
    raise Unavailable(Reason.KEYHOLDER_UNAVAILABLE, "no sound keys could be made")


def generate_ckks_keys(crypto: ParameterSet) -> tuple[bytes, bytes]:
    """A fresh key pair: SEAL's public key, and the secret key's residues mod the data prime."""
    parameters = encryption_parameters(crypto)
    context = sealapi.SEALContext(parameters, True, sealapi.SEC_LEVEL_TYPE.TC128)
    generator, public = sealapi.KeyGenerator(context), sealapi.PublicKey()
    generator.create_public_key(public)
    payload = seal_payload(saved(generator.secret_key()))
    residues = seal_array(payload[_SECRET_KEY_HEAD_BYTES:], crypto.degree * len(crypto.prime_bits))
    return saved(public), residues[: crypto.degree].tobytes()


class _SharedKeys:
    """32 bytes a meter, without an object each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys = bytearray()
        self._known = bytearray()

    def get(self, place: int) -> bytes | None:
        if place < len(self._known) and self._known[place]:
            return bytes(self._keys[KEY_BYTES * place : KEY_BYTES * (place + 1)])
        return None

    def put(self, place: int, key: bytes) -> None:
        with self._lock:
            lacking = place + 1 - len(self._known)
            if lacking > 0:
                self._keys += bytes(KEY_BYTES * lacking)
                self._known += bytes(lacking)
            self._keys[KEY_BYTES * place : KEY_BYTES * (place + 1)] = key
            self._known[place] = 1
