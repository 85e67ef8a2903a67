"""What the vectors are made of: fixed secrets, two cities, and what SEAL made once."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from nacl.signing import SigningKey

from gridveil.encryption import ciphertext_of_vector, seal_array, seal_payload
from gridveil.protocol.city import (
    CityParameters,
    CityPolicy,
    EntryAudience,
    Epoch,
    FailingLanes,
    Register,
)
from gridveil.protocol.noise import Mechanism, Noise, NoisePolicy
from gridveil.protocol.parameter_sets import ParameterSet, parameter_set
from gridveil.protocol.roster import Member
from gridveil.protocol.sealing import x25519_public
from tests.vectors.reference import Polynomial, Ring, rings

FOLDER = Path(__file__).resolve().parent
WINDOW = 1_700_000_100
PRIMES = {
    "ckks-2048": (1125899906826241,),
    "ckks-4096": (1152921504606830593, 1099511480321),
}
REGISTERS = {
    "ckks-2048": (
        Register("import_wh", "Wh", 200_000),
        Register("export_wh", "Wh", 200_000),
        Register("gas_l", "l", 50_000),
        Register("water_l", "l", 4_294_967_295),
    ),
    "ckks-4096": (Register("import_wh", "Wh", 200_000), Register("export_wh", "Wh", 200_000)),
}
READINGS = {
    "ckks-2048": ((1234, 0, 17, 4_294_967_295), (0, 0, 0, 0), (255, 256, 50_000, 16_777_216)),
    "ckks-4096": ((1234, 0), (0, 0), (199_999, 200_000)),
}
NOISE = {
    "ckks-2048": None,
    "ckks-4096": NoisePolicy(Noise(Mechanism.LAPLACE, 500_000), 48_000_000),
}
"""Of the policies."""
_CIPHERTEXT_HEAD_BYTES = 32 + 1 + 5 * 8


def fixed(name: str, size: int) -> bytes:
    """Made-up bytes, the same for ever."""
    return hashlib.shake_256(b"gridveil test vectors: " + name.encode()).digest(size)


@dataclass(frozen=True)
class VectorMeter:
    """A meter with fixed keys."""

    name: str

    @property
    def meter_id(self) -> bytes:
        return fixed(f"{self.name} id", 16)

    @property
    def signing_seed(self) -> bytes:
        return fixed(f"{self.name} ed25519", 32)

    @property
    def signing_key(self) -> SigningKey:
        return SigningKey(self.signing_seed)

    @property
    def sealing_secret(self) -> bytes:
        return fixed(f"{self.name} x25519", 32)

    @property
    def member(self) -> Member:
        return Member(
            self.meter_id, bytes(self.signing_key.verify_key), x25519_public(self.sealing_secret)
        )


METERS = tuple(VectorMeter(f"meter {number}") for number in range(3))


@dataclass(frozen=True)
class VectorCity:
    """A city on one parameter set, with every secret of it."""

    set_name: str

    @property
    def crypto(self) -> ParameterSet:
        return parameter_set(self.set_name)

    @cached_property
    def inputs(self) -> dict[str, str]:
        """What SEAL made once: a public key, its secret key, a ciphertext."""
        text = (FOLDER / f"inputs-{self.set_name}.json").read_text()
        loaded: dict[str, str] = json.loads(text)
        return loaded

    @property
    def public_key(self) -> bytes:
        return base64.b64decode(self.inputs["public_key_b64"])

    @property
    def seal_ciphertext(self) -> bytes:
        return base64.b64decode(self.inputs["ciphertext_b64"])

    @cached_property
    def secret(self) -> Polynomial:
        """The secret key in NTT form modulo q."""
        coefficients = ["-0+".index(sign) - 1 for sign in self.inputs["secret_key"]]
        return self.chain[0].transform(coefficients)

    @property
    def chain(self) -> tuple[Ring, ...]:
        return rings(self.crypto, PRIMES[self.set_name])

    @cached_property
    def public_key_residues(self) -> list[list[Polynomial]]:
        """[polynomial][prime] residues of the public key, in NTT form."""
        degree, count = self.crypto.degree, len(self.chain)
        body = seal_payload(self.public_key)[_CIPHERTEXT_HEAD_BYTES:]
        words = [int(word) for word in seal_array(body, 2 * count * degree)]
        parts = [words[at : at + degree] for at in range(0, len(words), degree)]
        return [parts[:count], parts[count:]]

    @property
    def identity_seed(self) -> bytes:
        return fixed("key-holder identity", 32)

    @property
    def identity(self) -> SigningKey:
        return SigningKey(self.identity_seed)

    @property
    def epoch_secret(self) -> bytes:
        return fixed(f"{self.set_name} epoch x25519", 32)

    @cached_property
    def parameters(self) -> CityParameters:
        return CityParameters(
            CityPolicy(
                city_id=fixed(f"{self.set_name} city", 16),
                parameter_set=self.set_name,
                registers=REGISTERS[self.set_name],
                window_length=900,
                grace=300,
                early_leeway=60,
                min_cohort=110,
                colluding=10,
                min_coverage_ppm=800_000,
                batch_limit=100,
                entry_audience=EntryAudience.AUDITORS,
                failing_lanes=FailingLanes.LEAVE_OUT,
                failure_budget=5,
                development=True,
                noise=NOISE[self.set_name],
            ),
            Epoch(
                epoch_id=fixed(f"{self.set_name} epoch", 16),
                first_window=WINDOW - 900,
                end_window=WINDOW - 900 + 86_400,
                sealing_key=x25519_public(self.epoch_secret),
                ckks_public_key=self.public_key,
            ),
        )

    @property
    def roster(self) -> Sequence[VectorMeter]:
        """The enrolled meters, ascending by id."""
        return sorted(METERS, key=lambda meter: meter.meter_id)


@lru_cache
def city(set_name: str) -> VectorCity:
    """The city of a parameter set."""
    return VectorCity(set_name)


def new_inputs(set_name: str) -> dict[str, str]:
    """Fresh keys and one ciphertext, made by SEAL: everything else is derived from these."""
    import tenseal
    from tenseal import sealapi

    from gridveil.encryption import public_context, saved, seal_parameters

    parameters = parameter_set(set_name)
    made = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    made.set_poly_modulus_degree(parameters.degree)
    primes = sealapi.CoeffModulus.Create(parameters.degree, list(parameters.prime_bits))
    made.set_coeff_modulus(primes)
    keys = sealapi.KeyGenerator(sealapi.SEALContext(made, True, sealapi.SEC_LEVEL_TYPE.TC128))
    public = sealapi.PublicKey()
    keys.create_public_key(public)
    body = seal_payload(saved(keys.secret_key()))[32 + 8 + 8 :]
    residues = [int(word) for word in seal_array(body, len(primes) * parameters.degree)]
    ring = rings(parameters, PRIMES[set_name])[0]
    signs = ring.centred(residues[: parameters.degree])
    slots = fixed("slots that SEAL encrypted", 64)
    context = public_context(parameters, saved(public))
    vector = tenseal.ckks_vector(context, list(slots)).serialize()
    assert seal_parameters(parameters)
    return {
        "about": "Made once by SEAL 4 through TenSEAL; its serializations, in base64.",
        "parameter_set": set_name,
        "public_key_b64": base64.b64encode(saved(public)).decode(),
        "secret_key": "".join("-0+"[sign + 1] for sign in signs),
        "slots": slots.hex(),
        "ciphertext_b64": base64.b64encode(ciphertext_of_vector(vector)).decode(),
    }
