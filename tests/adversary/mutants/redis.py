"""Aggregators without what makes a Redis that fails, and several aggregators on it, harmless."""

from __future__ import annotations

from tests.adversary.mutant import Attacks, Edit, Mutant, mutant

_REDIS = "services/gridveil_services/aggregator/store/redis"
_SCRIPTS = f"{_REDIS}/scripts.py"
_FILE = "test_redis_simulation.py"
_LOST = "never_believed"
_CALLS = "change_nothing"
_VIOLATION = "violation of"
_SHARING = "tests/contract/test_store_redis_sharing.py"
_TAKEOVER = "tests/contract/test_store_redis_takeover.py"
_STORE = "tests/contract/test_store_redis.py"
_CHANGES = "tests/contract/test_store_redis_changes.py"
_ACKNOWLEDGED = "tests/contract/test_store_redis_acknowledged.py"
_NO_REFUSAL = "DID NOT RAISE"
_TOLD = (
    "self._remote.settle(window, (Phase.OPEN, Phase.SEALED), missing=True, why=why)\n"
    "        self._clean()\n"
)


def _shared(path: str, found: str, put: str, file: str, select: str, shows: str) -> Mutant:
    """One of what several aggregators on a real Redis rely on."""
    return Mutant((Edit(path, found, put),), Attacks(file, select, on_redis=True), shows)


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
    "a call is answered before its reports are stored": Mutant(
        (
            Edit(
                "services/gridveil_services/aggregator/committer.py",
                "        try:\n            with self._observer.stage(Stage.COMMIT):\n",
                "        from gridveil_services.aggregator.store.interface import Committed\n\n"
                "        for commit in commits:\n"
                "            at = int(self._clock.now() * 1000)\n"
                "            commit.done.set_result([Committed(at)] * len(commit.batches))\n"
                "        commits = []\n"
                "        try:\n            with self._observer.stage(Stage.COMMIT):\n",
            ),
        ),
        Attacks(_ACKNOWLEDGED, "not_answered_before", on_redis=True),
        _NO_REFUSAL,
    ),
    "what WAIT answers is not looked at": _shared(
        f"{_REDIS}/servers.py",
        "replicated &= isinstance(reached, int) and reached >= wanted",
        "replicated &= isinstance(reached, int)",
        _STORE,
        "too_few_replicas_have",
        _NO_REFUSAL,
    ),
    "WAIT is sent on a connection that wrote nothing": _shared(
        f"{_REDIS}/servers.py",
        "            answers = _exchange(client, [*commands, ("
        '"WAIT", replicas, WAIT_MS)])\n            reached = answers.pop()\n',
        "            held = client.connection_pool.connection_kwargs\n"
        "            other = Redis(\n"
        '                host=held["host"], port=held["port"], protocol=2, driver_info=None,\n'
        "            )\n"
        "            answers = _exchange(client, commands)\n"
        '            reached = other.execute_command("WAIT", replicas, WAIT_MS)\n',
        _STORE,
        "too_few_replicas_have",
        _NO_REFUSAL,
    ),
    "no WAIT is sent": _shared(
        f"{_REDIS}/servers.py",
        "            answers = _exchange(client, [*commands, ("
        '"WAIT", replicas, WAIT_MS)])\n            reached = answers.pop()\n',
        "            answers, reached = _exchange(client, commands), replicas\n",
        _STORE,
        "too_few_replicas_have",
        _NO_REFUSAL,
    ),
    "redis-py tries a write again by itself": _shared(
        f"{_REDIS}/servers.py",
        "answers, reached = _exchange(client, commands), 0",
        "again = Retry(NoBackoff(), 3)\n"
        "            answers = again.call_with_retry(\n"
        "                lambda: _exchange(client, commands), lambda error: None\n"
        "            )\n"
        "            reached = 0",
        _STORE,
        "fate_is_not_known",
        _NO_REFUSAL,
    ),
    "receipts go by themselves after a day": _shared(
        _SCRIPTS,
        "  elements[#elements + 1] = string.sub(reports, at + 42, at + 245)\n",
        "  redis.call('EXPIRE', KEYS[high * 256 + low], 86400)\n"
        "  elements[#elements + 1] = string.sub(reports, at + 42, at + 245)\n",
        _ACKNOWLEDGED,
        "goes_by_itself",
        "assert gone_some_time == {KEYS.leader}",
    ),
    "what another stored first is acknowledged without the own journal": _shared(
        f"{_REDIS}/store.py",
        "            self._journal.add(again)\n",
        "",
        _SHARING,
        "acknowledged_again_by_another",
        _NO_REFUSAL,
    ),
    "one that is gone is done without although a server was restarted": _shared(
        f"{_REDIS}/vouching.py",
        "(same_servers and waited_s >= PATIENCE_S)",
        "waited_s >= PATIENCE_S",
        _SHARING,
        "gone_if_a_server_was_restarted",
        "assert not one.store.vouched(START)",
    ),
    "the same servers are seen in others": _shared(
        f"{_REDIS}/servers.py",
        "told.append(f\"{server['run_id']} {replication['master_replid']}\")",
        "told.append(server['redis_version'])",
        _SHARING,
        "gone_if_a_server_was_restarted",
        "assert not one.store.vouched(START)",
    ),
    "who took part is only what Redis says": _shared(
        f"{_REDIS}/replica.py",
        "participants = record.participants | self.pins.participants(window.start)",
        "participants = record.participants",
        _SHARING,
        "took_part_is_known",
        "assert not one.store.vouched(START)",
    ),
    "reports are taken before anybody is told who takes them": _shared(
        f"{_REDIS}/store.py",
        "        self._join(start)\n        self._freshness.resolve()\n",
        "        self._joined.add(start)\n        self._freshness.resolve()\n",
        _ACKNOWLEDGED,
        "named_in_a_window",
        "assert names_in(client) == ",
    ),
    "who takes part is not waited for on replicas": _shared(
        f"{_REDIS}/windows.py",
        "self._servers.write([call], everywhere=True)",
        "self._servers.write([call])",
        _ACKNOWLEDGED,
        "connected_replica",
        _NO_REFUSAL,
    ),
    "a window is new on a server that was emptied": _shared(
        f"{_REDIS}/store.py",
        "        late = (start if opens is None else opens) <= since\n",
        "        late = False\n",
        _SHARING,
        "opens_no_window",
        "is Phase.POISONED",
    ),
    "a window is sealed under an epoch that another has overtaken": _shared(
        _SCRIPTS,
        "if held[1] ~= ARGV[1] or held[2] ~= ARGV[3] then return {'other', held[1]} end\n"
        "redis.call('HSET', KEYS[1], 'phase', ARGV[2], 'sealed'",
        "if held[1] ~= ARGV[1] then return {'other', held[1]} end\n"
        "redis.call('HSET', KEYS[1], 'phase', ARGV[2], 'sealed'",
        _STORE,
        "changes_no_phase",
        "assert servers.write([late]) == ",
    ),
    "a window is moved under an epoch that another has overtaken": _shared(
        _SCRIPTS,
        "held[2] ~= ARGV[3] or held[3] ~= ARGV[4] then return {'other'} end",
        "held[2] ~= ARGV[3] then return {'other'} end",
        _TAKEOVER,
        "move_a_window_that_holds_reports",
        "assert not one.store.move_window(MOVED)",
    ),
    "who begins to lead draws no epochs": _shared(
        f"{_REDIS}/windows.py",
        "        self._fence(window.start)\n        return self.align(window)\n",
        "        return self.align(window)\n",
        _TAKEOVER,
        "move_a_window_that_holds_reports",
        "assert not one.store.move_window(MOVED)",
    ),
    "sums are not compared with what was vouched for": _shared(
        f"{_REDIS}/lanes.py",
        "            if expected is not None and held != expected[lane]:\n"
        "                raise corrupt()\n            if entries",
        "            if entries",
        _SHARING,
        "what_was_vouched_for",
        _NO_REFUSAL,
    ),
    "entries are not compared with what was vouched for": _shared(
        f"{_REDIS}/lanes.py",
        "        if expected is not None and held != expected[lane]:\n"
        "            raise corrupt()\n        elements",
        "        elements",
        _SHARING,
        "what_was_vouched_for",
        _NO_REFUSAL,
    ),
    "Redis is not told that a window is poisoned": _shared(
        f"{_REDIS}/store.py",
        _TOLD,
        "pass\n        self._clean()\n",
        _SHARING,
        "failover_lost_poisons",
        "assert phase(one) is Phase.POISONED",
    ),
    "Redis is not told why a window is poisoned": _shared(
        f"{_REDIS}/store.py",
        _TOLD,
        "self._remote.settle(window, (Phase.OPEN, Phase.SEALED), missing=True)\n"
        "        self._clean()\n",
        _SHARING,
        "failover_lost_poisons",
        "assert one.store.why_poisoned(START) == ",
    ),
    "clocks never differ": _shared(
        f"{_REDIS}/clocks.py",
        "return 2 * apart > len(fresh)",
        "return apart < 0",
        _SHARING,
        "two_whose_clocks_differ",
        "assert tell(one, 10_000.0) is False",
    ),
    "aggregators of another format share it": _shared(
        _SCRIPTS,
        "if held[1] and held[1] ~= ARGV[1] then return {'other', held[1]} end\n",
        "",
        _SHARING,
        "another_version",
        _NO_REFUSAL,
    ),
    "nobody follows a window that was moved": _shared(
        f"{_REDIS}/store.py",
        "        found = replace(record.window, phase=phase)\n",
        "        found = replace(window, phase=phase)\n",
        _TAKEOVER,
        "move_is_followed",
        "comes under other parameters just now",
    ),
    "a server's settings are asked for at the start only": _shared(
        f"{_REDIS}/servers.py",
        "                self._check_settings(settings)\n",
        "",
        _CHANGES,
        "made_unsafe and everysec",
        _NO_REFUSAL,
    ),
    "a voucher counts for whatever set": _shared(
        f"{_REDIS}/vouching.py",
        "if self.vouchers.get(n) != self.digest)",
        "if n not in self.vouchers)",
        _ACKNOWLEDGED,
        "another_set",
        "assert not harness.store.vouched(START)",
    ),
    "Redis is not told again that a window is released": _shared(
        f"{_REDIS}/store.py",
        "        self._remote.settle(window, (Phase.OPEN, Phase.SEALED), missing=True, why=why)\n"
        "        self._unclean",
        "        self._unclean",
        _TAKEOVER,
        "released_stays_so",
        "NotOpen(phase=<Phase.RELEASED",
    ),
    "a copy of an aggregator is not noticed": _shared(
        _SCRIPTS,
        "if run and run ~= ARGV[5] and",
        "if run and run == ARGV[5] and false and",
        "tests/contract/test_store_redis_copied.py",
        "earlier_of_two",
        _NO_REFUSAL,
    ),
    "what took too long to store is acknowledged": _shared(
        f"{_REDIS}/commits.py",
        "        self._check_may_acknowledge(acknowledged)\n",
        "",
        "tests/contract/test_store_redis_away.py",
        "took_too_long",
        _NO_REFUSAL,
    ),
    "who was away asks nobody": _shared(
        f"{_REDIS}/freshness.py",
        "return self._age() <= FRESH_S and start not in self._doubts",
        "return True",
        "tests/contract/test_store_redis_away.py",
        "waits_for_the_others_word",
        _NO_REFUSAL,
    ),
    "whoever takes part need not have answered": _shared(
        f"{_REDIS}/freshness.py",
        "return bool(asked or not others) and others <= answered",
        "return bool(asked or not others)",
        "tests/contract/test_store_redis_away.py",
        "waits_for_the_others_word",
        _NO_REFUSAL,
    ),
    "what is forgotten is only what Redis says": _shared(
        f"{_REDIS}/store.py",
        "self._forgotten = max(self._pins.forgotten(), self._remote.forgotten())",
        "self._forgotten = self._remote.forgotten()",
        _SHARING,
        "forgotten_stays_so",
        "assert one.store.window",
    ),
}
