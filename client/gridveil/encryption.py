"""CKKS encryption of one report's slots: SEAL, through TenSEAL, does all of it (extra ``meter``).

What SEAL wrote is read back strictly and folded; nothing from another party is parsed here but
the city's public key, after its signature was checked.
"""

from __future__ import annotations

import os
import struct
import threading
from functools import lru_cache

import numpy as np
import tenseal
import zstandard
from tenseal import sealapi

from gridveil.protocol.ciphertext import Residues, fold, to_bytes
from gridveil.protocol.errors import GridveilError, InternalFault, MalformedInput, Reason
from gridveil.protocol.parameter_sets import ParameterSet

_SEAL_HEADER = struct.Struct("<HBBBBHQ")
_SEAL_MAGIC = 0xA15E
_UNCOMPRESSED, _ZSTD = 0, 2
_CIPHERTEXT_HEAD = struct.Struct("<32sBQQQdQ")
_ARRAY_COUNT = struct.Struct("<Q")
_of_thread = threading.local()


class Encryptor:
    """Encrypts slot bytes under one epoch's public key."""

    def __init__(self, parameters: ParameterSet, slots: int, public_key: bytes) -> None:
        """``public_key``: SEAL's serialization, from signed city parameters."""
        self._parameters = parameters
        self._slots = slots
        self._context = public_context(parameters, public_key)

    def encrypt(self, slot_bytes: bytes) -> bytes:
        """The folded canonical ciphertext of P slot bytes: 8 (2P + N) bytes, fresh every time."""
        vector = tenseal.ckks_vector(self._context, list(slot_bytes))
        c0, c1 = seal_residues(ciphertext_of_vector(vector.serialize()), self._parameters)
        return to_bytes(np.concatenate((fold(c0, self._parameters, self._slots), c1)))


def public_context(parameters: ParameterSet, public_key: bytes) -> tenseal.Context:
    """A TenSEAL context that can encrypt and nothing else: no relin, Galois or secret keys."""
    keys = _field(1, public_key)
    try:
        context = tenseal.context_from(
            _field(1, seal_parameters(parameters)) + _field(2, keys), n_threads=1
        )
    except (ValueError, RuntimeError):
        raise MalformedInput(Reason.KEY_EPOCH, "the epoch's public key is not usable") from None
    if not context.has_public_key():
        raise MalformedInput(Reason.KEY_EPOCH, "the epoch's public key is missing")
    context.global_scale = parameters.scale
    return context


def encryption_parameters(parameters: ParameterSet) -> sealapi.EncryptionParameters:
    """A parameter set as SEAL's object."""
    made = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    made.set_poly_modulus_degree(parameters.degree)
    primes = sealapi.CoeffModulus.Create(parameters.degree, list(parameters.prime_bits))
    if primes[0].value() != parameters.modulus:
        raise InternalFault(Reason.INTERNAL, "this build of SEAL chooses other primes")
    made.set_coeff_modulus(primes)
    return made


@lru_cache
def seal_parameters(parameters: ParameterSet) -> bytes:
    """SEAL's serialization of the encryption parameters."""
    return saved(encryption_parameters(parameters))


def saved(seal_object: object) -> bytes:
    """SEAL's serialization of an object, through memory only (its save() wants a path)."""
    descriptor = os.memfd_create("seal")
    try:
        seal_object.save(f"/proc/self/fd/{descriptor}")  # type: ignore[attr-defined]
        size = os.lseek(descriptor, 0, os.SEEK_END)
        return os.pread(descriptor, size, 0)
    finally:
        os.close(descriptor)


def seal_payload(data: bytes) -> bytes:
    """The payload of a serialized SEAL object, decompressed."""
    magic, header, _major, _minor, mode, _reserved, size = _SEAL_HEADER.unpack_from(data)
    if magic != _SEAL_MAGIC or header != _SEAL_HEADER.size or size != len(data):
        raise _unexpected()
    body = data[_SEAL_HEADER.size :]
    if mode == _ZSTD:
        return _decompressor().decompressobj().decompress(body)
    if mode != _UNCOMPRESSED:
        raise _unexpected()
    return body


def _decompressor() -> zstandard.ZstdDecompressor:
    """One a thread: making it costs as much as using it."""
    if not hasattr(_of_thread, "decompressor"):
        _of_thread.decompressor = zstandard.ZstdDecompressor()
    made: zstandard.ZstdDecompressor = _of_thread.decompressor
    return made


def seal_residues(data: bytes, parameters: ParameterSet) -> tuple[Residues, Residues]:
    """c0 and c1 of a fresh SEAL ciphertext in NTT form, N residues each."""
    payload = seal_payload(data)
    _id, ntt, polynomials, degree, primes, scale, _ = _CIPHERTEXT_HEAD.unpack_from(payload)
    shape = (1, 2, parameters.degree, 1, float(parameters.scale))
    if (ntt, polynomials, degree, primes, scale) != shape:
        raise _unexpected()
    residues = seal_array(payload[_CIPHERTEXT_HEAD.size :], 2 * parameters.degree)
    return residues[: parameters.degree], residues[parameters.degree :]


def seal_array(data: bytes, count: int) -> Residues:
    """A serialized SEAL array of ``count`` residues."""
    body = seal_payload(data)
    (found,) = _ARRAY_COUNT.unpack_from(body)
    if found != count or len(body) != _ARRAY_COUNT.size + 8 * count:
        raise _unexpected()
    return np.frombuffer(body, dtype="<u8", offset=_ARRAY_COUNT.size)


def ciphertext_of_vector(data: bytes) -> bytes:
    """The one SEAL ciphertext in a serialized TenSEAL CKKSVector (protobuf field 2)."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 1:
            at += 8
            continue
        size, at = _varint(data, at)
        if key == 2 << 3 | 2:
            return data[at : at + size]
        at += size
    raise _unexpected()


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _field(number: int, value: bytes) -> bytes:
    size, length = len(value), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + value


def _unexpected() -> GridveilError:
    return InternalFault(Reason.INTERNAL, "SEAL wrote a form this version does not know")
