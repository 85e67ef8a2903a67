"""Readings that are encrypted once and sent for many meters: for load tests, and nothing else.

A ciphertext holds readings and a blinding, and no meter's name. All readings of a load test are
made up, so one ciphertext may stand for many meters; a real meter draws a fresh blinding for
every reading. The commitment belongs to one window's generators and is made anew for it; hash,
seal and signature belong to one meter and are made anew for each report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gridveil.encryption import Encryptor
from gridveil.loadtest.load import Load
from gridveil.protocol.city import CityParameters, CityPolicy
from gridveil.protocol.commitment import Generators
from gridveil.protocol.windows import SCATTER_SIGMAS, lane_count

LEAST_POOL = 1_024
_MOST_VALUE = 2_000


class Pooled(NamedTuple):
    """A made-up reading and its encryption."""

    values: tuple[int, ...]
    blinding: int
    ciphertext: bytes


def pool_size(meters: int, policy: CityPolicy) -> int:
    """How many ciphertexts a fleet needs at the least.

    The noise of a ciphertext that is added twice counts twice, and not by its root: with n reports
    of K ciphertexts in a lane, the noise is that of n (1 + n / K) fresh ones, which must not be
    more than a lane may hold.
    """
    slots = policy.layout.slots
    most = policy.crypto.meters_per_lane(slots)
    mean = -(-meters // lane_count(meters, policy.crypto, slots))
    fullest = min(meters, mean + SCATTER_SIGMAS * math.isqrt(mean))
    if fullest >= most:
        return meters
    return min(meters, max(LEAST_POOL, -(-(fullest**2) // (most - fullest))))


def made_up_values(policy: CityPolicy, number: int) -> tuple[int, ...]:
    """The readings of one ciphertext: known to everybody, none zero, within every bound."""
    return tuple(
        (number * 7 + at) % min(bound, _MOST_VALUE) + 1 for at, bound in enumerate(policy.bounds)
    )


@dataclass(frozen=True)
class PoolPlan:
    """Which ciphertext each report has: every process has a part of the pool."""

    processes: int
    each: int
    """Ciphertexts of a process."""

    @classmethod
    def of(cls, load: Load, policy: CityPolicy) -> PoolPlan:
        """For a load in a city."""
        return cls(load.processes, -(-pool_size(load.meters, policy) // load.processes))

    def index(self, place: int, window: int) -> int:
        """Where in its process's part the ciphertext of a meter is, in the test's n-th window."""
        return (place // self.processes + window) % self.each

    def number(self, process: int, index: int) -> int:
        """What the readings of a ciphertext follow from."""
        return process + self.processes * index

    def values(self, policy: CityPolicy, place: int, window: int) -> tuple[int, ...]:
        """The readings of a meter in the test's n-th window."""
        number = self.number(place % self.processes, self.index(place, window))
        return made_up_values(policy, number)


def make_pool(
    parameters: CityParameters,
    plan: PoolPlan,
    process: int,
    advance: Callable[[int], None],
) -> list[Pooled]:
    """A process's part of the pool, encrypted; ``advance`` is told of each ciphertext."""
    policy, epoch = parameters.policy, parameters.epoch
    layout = policy.layout
    encryptor = Encryptor(policy.crypto, layout.slots, epoch.ckks_public_key)
    pool = []
    for index in range(plan.each):
        values = made_up_values(policy, plan.number(process, index))
        blinding = layout.draw_blinding()
        pool.append(Pooled(values, blinding, encryptor.encrypt(layout.to_slots(values, blinding))))
        advance(1)
    return pool


def commitments(
    parameters: CityParameters, window_start: int, pool: Sequence[Pooled]
) -> list[bytes]:
    """The commitments of a pool's readings under one window's generators."""
    policy = parameters.policy
    generators = Generators.derive(
        policy.city_id, parameters.epoch.epoch_id, window_start, policy.register_names
    )
    return [generators.commit(pooled.values, pooled.blinding) for pooled in pool]
