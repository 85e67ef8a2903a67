"""A meter written from docs/protocol.md alone.

It imports nothing of the gridveil package but the generated stubs, and shares no code with it: SEAL
(through TenSEAL's bindings) encrypts, PyNaCl signs and seals, rbcl does the group, gRPC carries.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import grpc
import rbcl
from google.rpc import error_details_pb2, status_pb2
from nacl import bindings
from nacl.signing import SigningKey, VerifyKey
from tenseal import sealapi

from gridveil.protocol.v1 import aggregator_pb2, aggregator_pb2_grpc, report_pb2

GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


@dataclass(frozen=True)
class ParameterSet:
    """A row of the table "Parameter sets"."""

    degree: int
    modulus: int
    prime_bits: tuple[int, ...]
    scale: int


SETS = {
    "ckks-2048": ParameterSet(2048, 1125899906826241, (50,), 2**24),
    "ckks-4096": ParameterSet(4096, 1152921504606830593, (60, 40), 2**30),
}


class Untrusted(Exception):
    """Something that was offered does not hold; nothing may be encrypted."""


def require(holds: bool, what: str) -> None:
    """Raise Untrusted unless a check of the document holds."""
    if not holds:
        raise Untrusted(what)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def number(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")


def text(value: str) -> bytes:
    return number(len(value), 1) + value.encode("ascii")


@dataclass(frozen=True)
class Register:
    name: str
    unit: str
    bound: int


@dataclass(frozen=True)
class City:
    """Signed city parameters."""

    city_id: bytes
    crypto: ParameterSet
    registers: tuple[Register, ...]
    window_length: int
    grace: int
    early_leeway: int
    min_cohort: int
    colluding: int
    min_coverage_ppm: int
    batch_limit: int
    epoch_id: bytes
    first_window: int
    end_window: int
    sealing_key: bytes
    public_key: bytes
    digest: bytes

    @property
    def slots(self) -> int:
        """P."""
        size = 64
        while size - 4 * len(self.registers) < 32:
            size *= 2
        return size

    @property
    def ciphertext_bytes(self) -> int:
        return 8 * (2 * self.slots + self.crypto.degree)


class Bytes:
    """Takes a structure apart, front to back."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, size: int) -> bytes:
        require(size <= len(self.data), "too short")
        part, self.data = self.data[:size], self.data[size:]
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self) -> str:
        part = self.take(self.number(1))
        require(part.isascii(), "text that is not ASCII")
        return part.decode("ascii")


def read_city(data: bytes, signature: bytes, identity_key: bytes, city_id: bytes) -> City:
    """The section "City parameters": the signature first, then every bound."""
    digest = sha256(data)
    try:
        VerifyKey(identity_key).verify(
            text("gridveil/v1/city-parameters-signature") + digest, signature
        )
    except Exception:
        raise Untrusted("not signed by the pinned key") from None
    require((city := _parse_city(Bytes(data), digest)).city_id == city_id, "another city")
    return city


def _check_noise(source: Bytes, bounds: list[int]) -> None:
    """What totals will have; a meter only checks that it is lawful."""
    require((mechanism := source.number(1)) <= 2, "an unknown noise mechanism")
    if mechanism:
        window, day = source.number(4), source.number(4)
        require(0 < window <= day, "privacy losses out of range")
        most, share = max(bounds), window / 1_000_000 / len(bounds)
        fits = most / share <= 2**45 if mechanism == 1 else most / math.sqrt(2 * share) <= 2**47
        require(fits, "more noise than a total has room for")


def _parse_city(source: Bytes, digest: bytes) -> City:
    domain = text("gridveil/v1/city-parameters")
    require(source.take(len(domain)) == domain, "another domain")
    city_id, set_id = source.take(16), source.text()
    require(set_id in SETS, "an unknown parameter set")
    registers = tuple(
        Register(source.text(), source.text(), source.number(4)) for _ in range(source.number(1))
    )
    length, grace, leeway = (source.number(4) for _ in range(3))
    cohort, colluding, coverage, batch = (source.number(4) for _ in range(4))
    audience, failing, budget, development = (source.number(1) for _ in range(4))
    require(audience <= 2 and failing <= 1 and development <= 1, "an unknown value")
    require(1 <= budget <= 16, "a failure budget out of range")
    _check_noise(source, [register.bound for register in registers])
    epoch_id, first, end = source.take(16), source.number(8), source.number(8)
    sealing_key, key_size = source.take(32), source.number(4)
    require(key_size <= 200_000, "a public key beyond its limit")
    public_key = source.take(key_size)
    require(not source.data, "trailing bytes")
    city = City(
        city_id=city_id,
        crypto=SETS[set_id],
        registers=registers,
        window_length=length,
        grace=grace,
        early_leeway=leeway,
        min_cohort=cohort,
        colluding=colluding,
        min_coverage_ppm=coverage,
        batch_limit=batch,
        epoch_id=epoch_id,
        first_window=first,
        end_window=end,
        sealing_key=sealing_key,
        public_key=public_key,
        digest=digest,
    )
    _check_bounds(city)
    return city


def _check_bounds(city: City) -> None:
    names = [register.name for register in city.registers]
    require(1 <= len(names) <= 255 and len(set(names)) == len(names), "registers")
    for register in city.registers:
        require(re.fullmatch("[a-z][a-z0-9_]{0,31}", register.name) is not None, "a name")
        require(re.fullmatch("[A-Za-z][A-Za-z0-9]{0,15}", register.unit) is not None, "a unit")
        require(1 <= register.bound < 2**32, "a bound")
    require(city.slots <= city.crypto.degree // 2, "too many registers")
    length = city.window_length
    require(60 <= length <= 86_400, "window length")
    require(1 <= city.grace <= 86_399, "grace")
    require(0 <= city.early_leeway < length, "leeway")
    require(city.colluding < 2**31, "colluding")
    require(city.min_cohort >= city.colluding + 100, "min_cohort")
    require(500_000 <= city.min_coverage_ppm <= 1_000_000, "min_coverage")
    require(1 <= city.batch_limit <= 3_670_016 // (city.ciphertext_bytes + 292), "batch limit")
    require(0 < city.first_window < city.end_window < 2**53, "epoch")
    require(city.first_window % length == city.end_window % length == 0, "epoch")


def slot_bytes(city: City, values: Sequence[int], blinding: int) -> bytes:
    """The section "Slots"."""
    head = b"".join(number(value, 4) for value in values)
    return head + number(blinding, city.slots - len(head))


def encode(slots: bytes, scale: int) -> list[int]:
    """The section "Encoding"."""
    p = len(slots)
    angles = [math.pi * turn / (2 * p) for turn in range(4 * p)]
    return [
        round(
            scale
            / p
            * sum(v * math.cos(angles[pow(3, k, 4 * p) * j % (4 * p)]) for k, v in enumerate(slots))
        )
        for j in range(2 * p)
    ]


def fold(residues: Sequence[int], slots: int, modulus: int) -> list[int]:
    """The section "Folding"."""
    block = len(residues) // (2 * slots)
    return [sum(residues[at : at + block]) % modulus for at in range(0, len(residues), block)]


def seal_context(crypto: ParameterSet) -> Any:
    """SEAL's context of a parameter set."""
    made = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    made.set_poly_modulus_degree(crypto.degree)
    made.set_coeff_modulus(sealapi.CoeffModulus.Create(crypto.degree, list(crypto.prime_bits)))
    return sealapi.SEALContext(made, True, sealapi.SEC_LEVEL_TYPE.TC128)


def load(kind: Callable[[], Any], context: Any, data: bytes) -> Any:
    """A SEAL object from its serialization; SEAL reads from a path."""
    descriptor = os.memfd_create("seal")
    try:
        os.write(descriptor, data)
        made = kind()
        made.load(context, f"/proc/self/fd/{descriptor}")
        return made
    finally:
        os.close(descriptor)


def residues_of(ciphertext: Any) -> list[int]:
    """All residues of a SEAL ciphertext: those of c0, then those of c1."""
    array = ciphertext.dyn_array()
    return [array.at(index) for index in range(array.size())]


def canonical(residues: Sequence[int], slots: int, crypto: ParameterSet) -> bytes:
    """The canonical ciphertext of c0 and c1."""
    c0, c1 = residues[: crypto.degree], residues[crypto.degree :]
    return b"".join(number(r, 8) for r in [*fold(c0, slots, crypto.modulus), *c1])


def encrypt(city: City, slots: bytes) -> bytes:
    """The section "Encryption", by SEAL, then "Folding"."""
    crypto, context = city.crypto, seal_context(city.crypto)
    public_key = load(sealapi.PublicKey, context, city.public_key)
    plain, ciphertext = sealapi.Plaintext(), sealapi.Ciphertext()
    repeated = [float(byte) for byte in slots] * (crypto.degree // (2 * len(slots)))
    sealapi.CKKSEncoder(context).encode(repeated, float(crypto.scale), plain)
    sealapi.Encryptor(context, public_key).encrypt(plain, ciphertext)
    return canonical(residues_of(ciphertext), len(slots), crypto)


def generators(city: City, window: int) -> tuple[list[bytes], bytes]:
    """The section "Commitment": one generator for each four registers, and H."""
    scope = city.city_id + city.epoch_id + number(window, 8)
    names = [text(register.name) for register in city.registers]
    labels = [
        text("gridveil/v1/generator") + scope + b"".join(names[first : first + 4])
        for first in range(0, len(names), 4)
    ]
    return [_point(label) for label in labels], _point(
        text("gridveil/v1/blinding-generator") + scope
    )


def _point(label: bytes) -> bytes:
    point: bytes = rbcl.crypto_core_ristretto255_from_hash(hashlib.sha512(label).digest())
    return point


def commit(city: City, window: int, values: Sequence[int], blinding: int) -> bytes:
    groups, h = generators(city, window)
    packed = [
        sum(value << 60 * digit for digit, value in enumerate(values[first : first + 4]))
        for first in range(0, len(values), 4)
    ]
    terms = [
        rbcl.crypto_scalarmult_ristretto255(number(scalar, 32), point)
        for scalar, point in [
            *zip(packed, groups, strict=True),
            (blinding % GROUP_ORDER, h),
        ]
        if scalar
    ]
    total = bytes(32)
    for term in terms:
        total = rbcl.crypto_core_ristretto255_add(total, term)
    return total


def hkdf(secret: bytes, info: bytes) -> bytes:
    """HKDF-SHA-256 without salt, 32 bytes: one block of RFC 5869."""
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\1", "sha256")


def open_own(seal_key: bytes, window: int, sealed: bytes, leaf: bytes) -> tuple[bytes, bytes]:
    """The tag that a meter asks for, and the opened entry in the answer."""
    label = text("gridveil/v1/own-entry") + number(window, 8)
    derived = hmac.digest(seal_key, label, "sha512")
    entry = bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
        sealed, label, leaf[:24], derived[16:48]
    )
    return derived[:16], entry


@dataclass(frozen=True)
class Steps:
    """What a report was made of, for comparison with the vectors."""

    slots: bytes
    commitment: bytes
    commitment_hash: bytes
    seal_key: bytes
    seal_data: bytes
    transcript: bytes
    report: report_pb2.Report

    @property
    def digest(self) -> bytes:
        """What the receipt must name."""
        return sha256(self.transcript)


@dataclass(frozen=True)
class Meter:
    """A meter's secrets."""

    meter_id: bytes
    ed25519_seed: bytes
    x25519_secret: bytes

    @classmethod
    def create(cls) -> Meter:
        return cls(secrets.token_bytes(16), secrets.token_bytes(32), secrets.token_bytes(32))

    def enrolment(self, city_id: bytes) -> bytes:
        """The section "Enrolment and roster"."""
        key = SigningKey(self.ed25519_seed)
        public = bindings.crypto_scalarmult_base(self.x25519_secret)
        request = text("gridveil/v1/enrolment") + city_id + self.meter_id
        request += bytes(key.verify_key) + public
        return request + key.sign(request).signature

    def report(
        self,
        city: City,
        window: int,
        values: Sequence[int],
        *,
        blinding: int | None = None,
        encrypted: Callable[[City, bytes], bytes] = encrypt,
    ) -> Steps:
        """The sections "Slots" to "Report". Store the result before it is sent.

        Args:
            city: verified parameters.
            window: a window of the epoch.
            values: one for each register.
            blinding: fresh if left out.
            encrypted: how slot bytes become a canonical ciphertext.
        """
        require(window % city.window_length == 0, "no window starts there")
        require(city.first_window <= window < city.end_window, "a window of another epoch")
        bounds = zip(values, city.registers, strict=True)
        require(all(0 <= value <= register.bound for value, register in bounds), "a value")
        if blinding is None:
            blinding = secrets.randbits(8 * (city.slots - 4 * len(values)))
        slots = slot_bytes(city, values, blinding)
        commitment = commit(city, window, values, blinding)
        require(commitment != bytes(32), "draw another blinding")
        return self._sign(city, window, slots, commitment, encrypted(city, slots))

    def _sign(
        self, city: City, window: int, slots: bytes, commitment: bytes, ciphertext: bytes
    ) -> Steps:
        place = city.city_id + city.epoch_id + number(window, 8) + self.meter_id
        h = sha256(text("gridveil/v1/commitment") + place + commitment)
        claimed = city.digest + number(window, 8) + self.meter_id + number(0, 4) + h
        shared = bindings.crypto_scalarmult(self.x25519_secret, city.sealing_key)
        scope = city.city_id + city.epoch_id + self.meter_id
        key = hkdf(shared, text("gridveil/v1/seal-key") + scope)
        data = text("gridveil/v1/seal") + claimed + sha256(ciphertext)
        sealed = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(commitment, data, h[:24], key)
        transcript = text("gridveil/v1/report") + claimed + sha256(sealed) + sha256(ciphertext)
        report = report_pb2.Report(
            parameters_digest=city.digest,
            window_start=window,
            meter_id=self.meter_id,
            commitment_hash=h,
            sealed_commitment=sealed,
            ciphertext=ciphertext,
            signature=SigningKey(self.ed25519_seed).sign(transcript).signature,
        )
        return Steps(slots, commitment, h, key, data, transcript, report)


class Refused(Exception):
    """What the aggregator said, by its reason."""


NOT_NOW = {
    "OVERLOADED",
    "DRAINING",
    "STORE_UNAVAILABLE",
    "STORE_FULL",
    "KEYHOLDER_UNAVAILABLE",
    "INTERNAL",
}
"""Reasons of the table "Submitting a report" after which the same call is repeated later."""


class Aggregator:
    """The sections "Messages", "TLS" and "Errors"."""

    def __init__(self, address: str, city_id: bytes, ca: bytes, certificate: bytes, key: bytes):
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        name = f"aggregator.{city_id.hex()}.gridveil"
        options = [("grpc.ssl_target_name_override", name)]
        self.channel = grpc.secure_channel(address, credentials, options)
        self._stub = aggregator_pb2_grpc.AggregatorStub(self.channel)

    def parameters(self, window: int, identity_key: bytes, city_id: bytes) -> City:
        """Verified city parameters for a window."""
        request = aggregator_pb2.GetCityParametersRequest(window_start=window)
        signed = self._call(self._stub.GetCityParameters, request)
        return read_city(signed.parameters, signed.signature, identity_key, city_id)

    def submit(self, steps: Steps) -> report_pb2.Receipt:
        """Hand a report in; its receipt names it."""
        receipt: report_pb2.Receipt = self._call(self._stub.SubmitReport, steps.report)
        require(receipt.report_digest == steps.digest, "a receipt for something else")
        return receipt

    def submit_all(self, batch: Sequence[Steps]) -> list[report_pb2.ReportOutcome]:
        """Hand several reports in; an outcome each."""
        request = aggregator_pb2.SubmitReportsRequest(reports=[steps.report for steps in batch])
        require(request.ByteSize() <= 3_670_016, "too long a batch")
        return list(self._call(self._stub.SubmitReports, request).outcomes)

    def _call(self, method: Any, request: Any) -> Any:
        for _ in range(60):
            try:
                return self._call_once(method, request)
            except Refused as refused:
                if str(refused) not in NOT_NOW:
                    raise
            time.sleep(0.25)
        raise Refused("given up")

    def _call_once(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=10)
        except grpc.RpcError as error:
            trailers = cast(grpc.Call, error).trailing_metadata() or ()
            metadata: dict[str, Any] = {key: value for key, value in trailers}  # noqa: C416
            status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
            raise Refused(reason_of(status)) from None


def reason_of(status: status_pb2.Status) -> str:
    """The reason in a status."""
    info = error_details_pb2.ErrorInfo()
    found = [detail for detail in status.details if detail.Is(info.DESCRIPTOR)]
    require(len(found) == 1, "a refusal has one reason")
    found[0].Unpack(info)
    require(info.domain == "gridveil", "somebody else's refusal")
    return str(info.reason)
