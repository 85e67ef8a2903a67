"""From register values to a signed report: check, commit, encrypt, fold, seal, sign.

Encryption needs the extra ``gridveil[meter]``; this module imports without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from gridveil.meter_identity import MeterKeys
from gridveil.protocol.city import CityParameters, CityPolicy
from gridveil.protocol.commitment import Generators, commitment_hash
from gridveil.protocol.errors import MalformedInput, Reason, WrongState
from gridveil.protocol.layout import sha256
from gridveil.protocol.parameter_sets import parameter_set
from gridveil.protocol.report import FLAGS_KNOWN, Claim, Report, seal_data, sign_report
from gridveil.protocol.sealing import seal, shared_key
from gridveil.register_names import EXPORT_REGISTER, IMPORT_REGISTER

if TYPE_CHECKING:
    from gridveil.encryption import Encryptor

_EPOCHS_KEPT = 4
_WINDOWS_KEPT = 8
_SEALING_KEYS_KEPT = 131_072


def signed_reading(wh: int) -> dict[str, int]:
    """A signed energy as register values: what is below zero goes to ``export_wh``.

    Args:
        wh: energy drawn from the grid in the window, whole Wh; negative if more was fed in.
    """
    return {IMPORT_REGISTER: max(wh, 0), EXPORT_REGISTER: max(-wh, 0)}


def check_values(policy: CityPolicy, values: Mapping[str, int]) -> tuple[int, ...]:
    """The values in slot order, one for each of the city's registers.

    Raises:
        MalformedInput: READING_INVALID, with the ``register`` and never its value: for a register
            that is missing or unknown, a value that is no ``int`` (a ``bool`` is none), is
            negative, or is above the register's bound. Nothing is clipped or rounded.
    """
    for name in values:
        if name not in policy.register_names:
            raise _invalid("the city has no such register", str(name)[:32])
    return tuple(
        _check_value(register.name, register.bound, values.get(register.name))
        for register in policy.registers
    )


def _check_value(register: str, bound: int, value: object) -> int:
    if value is None:
        raise _invalid("a value is missing", register)
    if type(value) is not int:
        raise _invalid("a value is not an integer", register)
    if not 0 <= value <= bound:
        raise _invalid(f"a value is not within 0 and {bound}", register)
    return value


def _invalid(what: str, register: str) -> MalformedInput:
    return MalformedInput(Reason.READING_INVALID, f"{register}: {what}", register=register)


class ReportBuilder:
    """Builds one meter's reports under one epoch's parameters."""

    def __init__(self, parameters: CityParameters, keys: MeterKeys) -> None:
        self._parameters = parameters
        self._keys = keys
        self._signing_key = keys.signing_key

    def build(self, window_start: int, values: Mapping[str, int]) -> Report:
        """A new report: its blinding and its encryption are fresh in every call.

        Persist it before it is sent, and send no other for the same window.

        Args:
            window_start: Unix seconds UTC, a window of the epoch.
            values: whole units by register name, of every register of the city.

        Raises:
            MalformedInput: READING_INVALID before anything else; WINDOW_MISALIGNED;
                CONFIG_INVALID without the extra ``gridveil[meter]``.
            WrongState: KEY_EPOCH if the epoch does not serve the window or its key is unusable.
        """
        policy, epoch = self._parameters.policy, self._parameters.epoch
        ordered = check_values(policy, values)
        policy.rules.check_aligned(window_start)
        if not epoch.serves(window_start):
            raise WrongState(Reason.KEY_EPOCH, "the epoch does not serve the window")
        blinding = policy.layout.draw_blinding()
        generators = _generators(
            policy.city_id, epoch.epoch_id, window_start, policy.register_names
        )
        commitment = generators.commit(ordered, blinding)
        encryptor = _encryptor(policy.parameter_set, policy.layout.slots, epoch.ckks_public_key)
        ciphertext = encryptor.encrypt(policy.layout.to_slots(ordered, blinding))
        return self.finish(window_start, commitment, ciphertext)

    def warm_up(self) -> None:
        """Agree with the epoch on the sealing key now, so that no report waits for it."""
        self._sealing_key()

    def finish(self, window_start: int, commitment: bytes, ciphertext: bytes) -> Report:
        """Seal a commitment to a ciphertext's readings in the window, and sign the report.

        For :meth:`build`, and for load tests, whose readings are made up. A meter never uses it
        with a blinding that it used before.
        """
        city_id, epoch = self._parameters.policy.city_id, self._parameters.epoch
        meter_id = self._keys.meter_id
        hashed = commitment_hash(city_id, epoch.epoch_id, window_start, meter_id, commitment)
        digest, ciphertext_digest = self._parameters.digest, sha256(ciphertext)
        associated = seal_data(
            digest, window_start, meter_id, FLAGS_KNOWN, hashed, ciphertext_digest
        )
        claim = Claim(
            parameters_digest=digest,
            window_start=window_start,
            meter_id=meter_id,
            flags=FLAGS_KNOWN,
            commitment_hash=hashed,
            sealed_commitment=seal(self._sealing_key(), commitment, hashed, associated),
            ciphertext_digest=ciphertext_digest,
        )
        return sign_report(claim, ciphertext, self._signing_key)

    def _sealing_key(self) -> bytes:
        city_id, epoch, keys = self._parameters.policy.city_id, self._parameters.epoch, self._keys
        return _sealing_key(
            keys.sealing_secret, epoch.sealing_key, city_id, epoch.epoch_id, keys.meter_id
        )


_sealing_key = lru_cache(maxsize=_SEALING_KEYS_KEPT)(shared_key)
_generators = lru_cache(maxsize=_WINDOWS_KEPT)(Generators.derive)


@lru_cache(maxsize=_EPOCHS_KEPT)
def _encryptor(set_name: str, slots: int, public_key: bytes) -> Encryptor:
    try:
        from gridveil.encryption import Encryptor
    except ModuleNotFoundError as error:
        if error.name not in {"tenseal", "zstandard"}:
            raise
        raise MalformedInput(
            Reason.CONFIG_INVALID,
            "encryption needs TenSEAL: install the extra with pip install 'gridveil[meter]'",
        ) from None
    return Encryptor(parameter_set(set_name), slots, public_key)
