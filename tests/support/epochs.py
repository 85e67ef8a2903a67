"""A real epoch for tests: SEAL's keys, an identity that signs, and the opening of one report.

city = city_keys()
opened = city.open_report(report, member)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

from nacl.signing import SigningKey
from tenseal import sealapi

from gridveil.encryption import saved, seal_array, seal_payload
from gridveil.protocol.ciphertext import parse_ciphertext
from gridveil.protocol.city import CityParameters, CityPolicy, Epoch
from gridveil.protocol.commitment import Generators, commitment_hash
from gridveil.protocol.decoding import checked_slot_sums, decrypt_folded, slot_values
from gridveil.protocol.report import Report
from gridveil.protocol.roster import Member
from gridveil.protocol.sealing import open_sealed, shared_key, x25519_public
from gridveil.protocol.signing import verify
from gridveil.protocol.v1 import aggregator_pb2
from tests.support.reports import WINDOW, city_policy

_PLAINTEXT_HEAD = struct.Struct("<32sQd")
EPOCH_WINDOWS = 96


@dataclass(frozen=True)
class CityKeys:
    """One epoch with all its secrets."""

    parameters: CityParameters
    identity: SigningKey
    sealing_secret: bytes
    ckks_secret: tuple[int, ...]
    """SEAL's secret key, NTT form mod q."""

    @property
    def identity_key(self) -> bytes:
        """What meters pin."""
        return bytes(self.identity.verify_key)

    def signed(self) -> aggregator_pb2.SignedCityParameters:
        """As an aggregator hands them out."""
        return aggregator_pb2.SignedCityParameters(
            parameters=self.parameters.encode(), signature=self.parameters.sign(self.identity)
        )

    def open_report(self, report: Report, member: Member) -> tuple[list[int], int]:
        """Register values and blinding of one report, every check of the protocol made."""
        claim, policy, epoch = report.claim, self.parameters.policy, self.parameters.epoch
        verify(member.signing_key, claim.transcript(), report.signature)
        crypto, slots = policy.crypto, policy.layout.slots
        folded = parse_ciphertext(report.ciphertext, crypto, slots)
        coefficients = decrypt_folded(folded, self.ckks_secret, crypto, slots)
        sums = checked_slot_sums(slot_values(coefficients, crypto, slots), 1)
        values, blinding = policy.layout.from_slot_sums(sums)
        generators = Generators.derive(
            policy.city_id, epoch.epoch_id, claim.window_start, policy.register_names
        )
        key = shared_key(
            self.sealing_secret,
            member.sealing_key,
            policy.city_id,
            epoch.epoch_id,
            member.meter_id,
        )
        commitment = open_sealed(
            key, claim.sealed_commitment, claim.commitment_hash, claim.seal_data()
        )
        assert generators.commit(values, blinding) == commitment
        assert claim.parameters_digest == self.parameters.digest
        assert claim.commitment_hash == commitment_hash(
            policy.city_id, epoch.epoch_id, claim.window_start, claim.meter_id, commitment
        )
        return values, blinding


def city_keys(
    policy: CityPolicy | None = None,
    *,
    first_window: int = WINDOW,
    windows: int = EPOCH_WINDOWS,
    identity: SigningKey | None = None,
    name: bytes = b"epoch-0000000000",
) -> CityKeys:
    """A new epoch of a city; the CKKS keys of a parameter set are made once."""
    policy = policy or city_policy()
    public, secret = ckks_keys(policy.parameter_set, name)
    sealing_secret = bytes(range(32))
    epoch = Epoch(
        epoch_id=name,
        first_window=first_window,
        end_window=first_window + windows * policy.window_length,
        sealing_key=x25519_public(sealing_secret),
        ckks_public_key=public,
    )
    return CityKeys(
        CityParameters(policy, epoch),
        identity or SigningKey(b"identity".ljust(32)),
        sealing_secret,
        secret,
    )


@lru_cache
def ckks_keys(set_name: str, _name: bytes) -> tuple[bytes, tuple[int, ...]]:
    """SEAL's public key, serialized, and the residues of its secret key."""
    parameters = city_policy(parameter_set=set_name, batch_limit=1).crypto
    made = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    made.set_poly_modulus_degree(parameters.degree)
    made.set_coeff_modulus(
        sealapi.CoeffModulus.Create(parameters.degree, list(parameters.prime_bits))
    )
    context = sealapi.SEALContext(made, True, sealapi.SEC_LEVEL_TYPE.TC128)
    generator = sealapi.KeyGenerator(context)
    public = sealapi.PublicKey()
    generator.create_public_key(public)
    payload = seal_payload(saved(generator.secret_key()))
    primes = len(parameters.prime_bits)
    residues = seal_array(payload[_PLAINTEXT_HEAD.size :], primes * parameters.degree)
    return saved(public), tuple(int(r) for r in residues[: parameters.degree])
