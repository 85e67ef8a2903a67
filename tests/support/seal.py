"""SEAL with a fresh key of its own, for checking what the protocol makes of its ciphertexts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tenseal
from numpy.typing import NDArray
from tenseal import sealapi

from gridveil.encryption import (
    ciphertext_of_vector,
    public_context,
    saved,
    seal_array,
    seal_payload,
    seal_residues,
)
from gridveil.protocol.ciphertext import Residues, fold
from gridveil.protocol.parameter_sets import ParameterSet

_SECRET_HEAD_BYTES = 32 + 8 + 8


class SealKeys:
    """A key pair; encrypts through TenSEAL, decrypts with SEAL's own decryptor and decoder."""

    def __init__(self, parameters: ParameterSet, folder: Path) -> None:
        self.parameters = parameters
        self._file = folder / "ciphertext"
        made = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
        made.set_poly_modulus_degree(parameters.degree)
        primes = sealapi.CoeffModulus.Create(parameters.degree, list(parameters.prime_bits))
        made.set_coeff_modulus(primes)
        self._context = sealapi.SEALContext(made, True, sealapi.SEC_LEVEL_TYPE.TC128)
        keys = sealapi.KeyGenerator(self._context)
        public = sealapi.PublicKey()
        keys.create_public_key(public)
        self.public_key: bytes = saved(public)
        secret = seal_payload(saved(keys.secret_key()))[_SECRET_HEAD_BYTES:]
        residues = seal_array(secret, len(primes) * parameters.degree)
        self.secret = [int(residue) for residue in residues[: parameters.degree]]
        self._decryptor = sealapi.Decryptor(self._context, keys.secret_key())
        self._encoder = sealapi.CKKSEncoder(self._context)
        self._public_context = public_context(parameters, self.public_key)

    def encrypt(self, slot_bytes: bytes) -> tenseal.CKKSVector:
        """An unfolded TenSEAL vector."""
        return tenseal.ckks_vector(self._public_context, list(slot_bytes))

    def folded(self, vector: tenseal.CKKSVector, slots: int) -> Residues:
        """The vector as a folded ciphertext."""
        c0, c1 = seal_residues(ciphertext_of_vector(vector.serialize()), self.parameters)
        return np.concatenate((fold(c0, self.parameters, slots), c1))

    def decode(self, vector: tenseal.CKKSVector) -> NDArray[np.complex128]:
        """All N/2 slots as SEAL's decryptor and decoder give them out."""
        self._file.write_bytes(ciphertext_of_vector(vector.serialize()))
        ciphertext, plain = sealapi.Ciphertext(), sealapi.Plaintext()
        ciphertext.load(self._context, str(self._file))
        self._decryptor.decrypt(ciphertext, plain)
        return np.array(self._encoder.decode_complex(plain))

    def decrypt(self, vector: tenseal.CKKSVector, slots: int) -> NDArray[np.complex128]:
        """The P slots by SEAL: the mean of all repetitions, which is what folding keeps."""
        values = self.decode(vector)
        mean: NDArray[np.complex128] = values.reshape(-1, slots).mean(axis=0)
        return mean
