"""Many meters' reports, made by all cores ahead of a measurement or beside it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from gridveil.encryption import Encryptor
from gridveil.protocol.city import CityParameters
from gridveil.protocol.commitment import Generators, commitment_hash
from gridveil.protocol.layout import sha256, u64
from gridveil.protocol.report import Claim, Report, seal_data, sign_report
from gridveil.protocol.roster import Member, enrolment_request
from gridveil.protocol.sealing import seal, shared_key, x25519_public
from gridveil.protocol.signing import SigningKey
from gridveil.protocol.v1 import aggregator_pb2

BATCH = 128


@dataclass(frozen=True)
class BenchmarkMeter:
    """A meter whose secrets follow from a seed: worthless outside a benchmark."""

    seed: bytes
    number: int

    def _derived(self, purpose: bytes) -> bytes:
        return sha256(purpose + self.seed + u64(self.number))

    @property
    def meter_id(self) -> bytes:
        return self._derived(b"id")[:16]

    @property
    def signing_key(self) -> SigningKey:
        return SigningKey(self._derived(b"signing"))

    @property
    def sealing_secret(self) -> bytes:
        return self._derived(b"sealing")

    def member(self) -> Member:
        """Its roster entry."""
        verify_key = bytes(self.signing_key.verify_key)
        return Member(self.meter_id, verify_key, x25519_public(self.sealing_secret))

    def values(self, registers: int) -> list[int]:
        """Its readings: different for each meter and register, and easy to add up."""
        return [(self.number * 7 + register) % 2000 + 1 for register in range(registers)]

    def enrolment(self, city_id: bytes) -> bytes:
        """Its signed enrolment request."""
        return enrolment_request(city_id, self.member(), self.signing_key)


@dataclass(frozen=True)
class Task:
    """What a worker needs to make one batch."""

    parameters: bytes
    window_start: int
    seed: bytes
    first: int
    count: int


def batches(
    parameters: CityParameters, window_start: int, seed: bytes, meters: Iterable[int], workers: int
) -> Iterator[bytes]:
    """Serialized SubmitReports requests of ``BATCH`` meters each, starting at ``meters``."""
    encoded = parameters.encode()
    tasks = (Task(encoded, window_start, seed, first, BATCH) for first in meters)
    with multiprocessing.get_context("spawn").Pool(workers, os.nice, (5,)) as pool:
        yield from pool.imap_unordered(make_batch, tasks)


def enrolments(city_id: bytes, seed: bytes, numbers: Iterable[int]) -> list[bytes]:
    """Enrolment requests of meters."""
    return [BenchmarkMeter(seed, number).enrolment(city_id) for number in numbers]


def make_batch(task: Task) -> bytes:
    """One serialized SubmitReports request."""
    parameters = _decoded(task.parameters)
    reports = [
        make_report(parameters, task.window_start, BenchmarkMeter(task.seed, number)).to_message()
        for number in range(task.first, task.first + task.count)
    ]
    return aggregator_pb2.SubmitReportsRequest(reports=reports).SerializeToString()


def make_report(parameters: CityParameters, window_start: int, meter: BenchmarkMeter) -> Report:
    """The report of one meter for one window."""
    policy, epoch = parameters.policy, parameters.epoch
    values, blinding = meter.values(policy.layout.registers), policy.layout.draw_blinding()
    commitment = _generators(parameters, window_start).commit(values, blinding)
    ciphertext = _encryptor(parameters).encrypt(policy.layout.to_slots(values, blinding))
    named = (policy.city_id, epoch.epoch_id)
    digest = sha256(ciphertext)
    hashed = commitment_hash(*named, window_start, meter.meter_id, commitment)
    key = shared_key(meter.sealing_secret, epoch.sealing_key, *named, meter.meter_id)
    head = (parameters.digest, window_start, meter.meter_id, 0, hashed)
    sealed = seal(key, commitment, hashed, seal_data(*head, digest))
    return sign_report(Claim(*head, sealed, digest), ciphertext, meter.signing_key)


@lru_cache(1)
def _decoded(parameters: bytes) -> CityParameters:
    return CityParameters.decode(parameters)


@lru_cache(1)
def _encryptor(parameters: CityParameters) -> Encryptor:
    policy = parameters.policy
    return Encryptor(policy.crypto, policy.layout.slots, parameters.epoch.ckks_public_key)


@lru_cache(1)
def _generators(parameters: CityParameters, window_start: int) -> Generators:
    policy, epoch = parameters.policy, parameters.epoch
    return Generators.derive(policy.city_id, epoch.epoch_id, window_start, policy.register_names)
