"""Copies of Gridveil with one protection taken out, and the attacks that must then succeed."""

from __future__ import annotations

from tests.adversary.mutants.log import LOG_MUTANTS
from tests.adversary.mutants.noise import NOISE_MUTANTS
from tests.adversary.mutants.redis import REDIS_MUTANTS
from tests.adversary.mutants.release import RELEASE_MUTANTS
from tests.adversary.mutants.stored import STORED_MUTANTS
from tests.adversary.mutants.verifiers import VERIFIERS_MUTANTS

MUTANTS = (
    RELEASE_MUTANTS
    | LOG_MUTANTS
    | VERIFIERS_MUTANTS
    | NOISE_MUTANTS
    | STORED_MUTANTS
    | REDIS_MUTANTS
)
