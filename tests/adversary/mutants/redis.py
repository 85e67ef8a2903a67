"""Aggregators without what makes a Redis that fails, and several aggregators on it, harmless."""

from __future__ import annotations

from tests.adversary.mutant import Attacks, Edit, Mutant, mutant

_REDIS = "services/gridveil_services/aggregator/store/redis"
_SCRIPTS = f"{_REDIS}/scripts.py"
_FILE = "test_redis_simulation.py"
_LOST = "never_believed"
_CALLS = "change_nothing"
_VIOLATION = "violation of"

REDIS_MUTANTS: dict[str, Mutant] = {
    "a lane takes two reports of a meter": mutant(
        _SCRIPTS,
        "if #known > 0 or count + new",
        "if count + new",
        _FILE,
        _CALLS,
        _VIOLATION,
    ),
    "a window is sealed without its lanes": mutant(
        _SCRIPTS,
        "redis.call('HSET', KEYS[1], 'sealed', ARGV[1])\nreturn {'done'}",
        "return {'done'}",
        _FILE,
        _CALLS,
        _VIOLATION,
    ),
    "a lane's count and sum change apart": mutant(
        _SCRIPTS,
        "redis.call('HSET', KEYS[1], 'count', string.format('%d', count + new), 'digest', digest)",
        "",
        _FILE,
        _CALLS,
        _VIOLATION,
    ),
    "a release waits for no voucher": mutant(
        f"{_REDIS}/vouching.py",
        "return not self.missing or (same_servers and waited_s >= PATIENCE_S)",
        "return True",
        _FILE,
        _LOST,
        _VIOLATION,
    ),
    "nobody waits for replicas or compares acknowledgements": Mutant(
        (
            Edit(f"{_REDIS}/servers.py", "if not replicated:", "if False:"),
            Edit(
                f"{_REDIS}/replica.py",
                "if receipt is None or receipt.digest != digest:",
                "if False:",
            ),
        ),
        Attacks(_FILE, _LOST),
        _VIOLATION,
    ),
    "an acknowledgement is in no journal": mutant(
        f"{_REDIS}/commits.py",
        "self.journal.add(acknowledged)",
        "pass",
        _FILE,
        _LOST,
        _VIOLATION,
    ),
}
