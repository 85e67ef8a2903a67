"""A development city for measuring in."""

from __future__ import annotations

import os

from tenseal import sealapi

from gridveil.encryption import saved
from gridveil.protocol.city import CityParameters, CityPolicy, EntryAudience, Epoch, Register
from gridveil.protocol.parameter_sets import DEFAULT_PARAMETER_SET, ParameterSet
from gridveil.protocol.sealing import x25519_public

DAY = 1_700_006_400
DAY_S = 86_400


def local_parameters(registers: int) -> CityParameters:
    """City parameters with fresh keys whose secret half is thrown away."""
    policy = CityPolicy(
        city_id=os.urandom(16),
        parameter_set=DEFAULT_PARAMETER_SET,
        registers=tuple(Register(f"register_{at}", "Wh", 200_000) for at in range(registers)),
        window_length=900,
        grace=300,
        early_leeway=60,
        min_cohort=100,
        colluding=0,
        min_coverage_ppm=800_000,
        batch_limit=128,
        entry_audience=EntryAudience.NOBODY,
        development=True,
    )
    sealing_key = x25519_public(os.urandom(32))
    epoch = Epoch(os.urandom(16), DAY, DAY + DAY_S, sealing_key, _public_key(policy.crypto))
    return CityParameters(policy, epoch)


def _public_key(parameters: ParameterSet) -> bytes:
    made = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    made.set_poly_modulus_degree(parameters.degree)
    made.set_coeff_modulus(
        sealapi.CoeffModulus.Create(parameters.degree, list(parameters.prime_bits))
    )
    context = sealapi.SEALContext(made, True, sealapi.SEC_LEVEL_TYPE.TC128)
    key = sealapi.PublicKey()
    sealapi.KeyGenerator(context).create_public_key(key)
    return saved(key)
