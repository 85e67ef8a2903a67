"""Where epochs lie, a folder each: the signed parameters in the clear, the secrets sealed.

The secrets are sealed under a key of their epoch's own, which lies beside them sealed under the
key-encrypting key. A copy of either file alone opens nothing, so that destroying an epoch fails
only where copies of both were made.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gridveil.files import make_folder, sync_folder, write_durably
from gridveil.protocol.city import CityParameters, open_city_parameters
from gridveil.protocol.errors import GridveilError, IntegrityLost, Reason
from gridveil.protocol.layout import ID_BYTES, KEY_BYTES, SIGNATURE_BYTES, Reader, blob
from gridveil.protocol.v1.aggregator_pb2 import SignedCityParameters
from gridveil_services.keyholder.at_rest import AtRest, destroy_file

_PARAMETERS = "parameters"
_KEY = "key"
_CONDEMNED = "key.condemned"
_SECRETS = "secrets"
_KEY_PURPOSE = "epoch key"
_PURPOSE = "epoch secrets"
_RESIDUE_LIMIT = 1 << 20


@dataclass(frozen=True)
class SignedParameters:
    """City parameters with the identity key's signature."""

    parameters: CityParameters
    signature: bytes

    def to_message(self) -> SignedCityParameters:
        return SignedCityParameters(parameters=self.parameters.encode(), signature=self.signature)


@dataclass(frozen=True)
class Secrets:
    """The secret halves of an epoch's keys."""

    sealing: bytes
    """X25519, 32 bytes."""
    ckks: bytes
    """Residues of the secret key mod the data prime in SEAL's NTT form, 8 bytes each."""

    def encode(self) -> bytes:
        return self.sealing + blob(self.ckks)

    @classmethod
    def decode(cls, data: bytes) -> Secrets:
        reader = Reader(data, "epoch secrets")
        secrets = cls(reader.take(KEY_BYTES), reader.blob(_RESIDUE_LIMIT))
        reader.end()
        return secrets

    def __repr__(self) -> str:
        return "Secrets()"


class EpochStore:
    """The epochs in a folder."""

    def __init__(self, folder: Path, at_rest: AtRest, identity_key: bytes, city_id: bytes) -> None:
        make_folder(folder)
        self._folder = folder
        self._at_rest = at_rest
        self._identity_key = identity_key
        self._city_id = city_id

    def ids(self) -> Iterator[bytes]:
        """The epochs that lie there, whole or not."""
        for path in sorted(self._folder.iterdir()):
            if len(path.name) != 2 * ID_BYTES:
                raise _damaged()
            yield bytes.fromhex(path.name)

    def save(self, signed: SignedParameters, secrets: Secrets) -> None:
        """Keep a new epoch; durable."""
        epoch_id = signed.parameters.epoch.epoch_id
        folder = self._path(epoch_id)
        sealed_key, key = self._at_rest.with_new_key(_KEY_PURPOSE, epoch_id)
        sealed = key.seal(_PURPOSE, epoch_id, secrets.encode())
        try:
            make_folder(folder)
            write_durably(folder / _KEY, sealed_key)
            write_durably(folder / _SECRETS, sealed)
            write_durably(folder / _PARAMETERS, signed.signature + signed.parameters.encode())
        except OSError:
            # Each attempt makes another epoch: what a full disk leaves must not pile up.
            with suppress(OSError):
                self.delete(epoch_id)
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def load(self, epoch_id: bytes) -> tuple[SignedParameters, Secrets]:
        """An epoch; PARTIAL_CORRUPT if it is not what was kept."""
        folder = self._path(epoch_id)
        if self.is_destroyed(epoch_id):
            raise IntegrityLost(
                Reason.PARTIAL_CORRUPT, "a stored epoch is missing or was destroyed"
            )
        try:
            signed, sealed_key, sealed = (
                (folder / name).read_bytes() for name in (_PARAMETERS, _KEY, _SECRETS)
            )
        except OSError:
            raise _damaged() from None
        signature, encoded = signed[:SIGNATURE_BYTES], signed[SIGNATURE_BYTES:]
        key = self._at_rest.with_key(_KEY_PURPOSE, epoch_id, sealed_key)
        secrets = key.open(_PURPOSE, epoch_id, sealed)
        try:
            parameters = open_city_parameters(encoded, signature, self._identity_key, self._city_id)
            return SignedParameters(parameters, signature), Secrets.decode(secrets)
        except GridveilError:
            raise _damaged() from None

    def at_rest(self, epoch_id: bytes) -> AtRest:
        """Under the epoch's own key: what is sealed with it goes when the epoch does.

        Raises:
            IntegrityLost: PARTIAL_CORRUPT if the key is not there, or not what was kept.
        """
        try:
            sealed = (self._path(epoch_id) / _KEY).read_bytes()
        except OSError:
            raise _damaged() from None
        return self._at_rest.with_key(_KEY_PURPOSE, epoch_id, sealed)

    def is_destroyed(self, epoch_id: bytes) -> bool:
        """Whether the destruction of an epoch has begun, or it does not lie there at all."""
        folder = self._path(epoch_id)
        return not ((folder / _KEY).exists() and (folder / _SECRETS).exists())

    def delete(self, epoch_id: bytes) -> None:
        """Destroy an epoch: from its first step on nothing opens, and any later call ends it.

        The key is renamed first, durably: a name says that destruction has begun, which half
        overwritten bytes do not. Then both files are overwritten and removed, and the rest goes.
        """
        folder = self._path(epoch_id)
        if not folder.exists():
            return
        with suppress(FileNotFoundError):
            (folder / _KEY).rename(folder / _CONDEMNED)
        sync_folder(folder)
        for path in sorted(folder.iterdir()):  # with what a cut short write_durably left
            if not path.name.startswith(_PARAMETERS):
                destroy_file(path)
        sync_folder(folder)
        shutil.rmtree(folder)
        sync_folder(self._folder)

    def _path(self, epoch_id: bytes) -> Path:
        return self._folder / epoch_id.hex()


def _damaged() -> IntegrityLost:
    return IntegrityLost(Reason.PARTIAL_CORRUPT, "a stored epoch is damaged")
