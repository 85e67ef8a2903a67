"""Stores that say that something is durable before it is."""

from __future__ import annotations

from tests.adversary.mutant import Attacks, Edit, Mutant, mutant

_CUTS = "test_power_cuts.py"
_KILLS = "test_killed_store.py"
_TWICE = "lost, torn or counted twice after a kill"
_LOST = "lost or half there after a power cut"
_STORE = "services/gridveil_services/aggregator/store"
_LOG = "services/gridveil_services/releaselog"

STORED_MUTANTS: dict[str, Mutant] = {
    "the aggregator's store syncs at checkpoints only": Mutant(
        (
            Edit(f"{_STORE}/database.py", '"synchronous = full",', '"synchronous = normal",'),
            Edit(
                f"{_STORE}/database.py",
                'if writer.pragma("synchronous") != 2:',
                'if writer.pragma("synchronous") != 1:',
            ),
        ),
        Attacks(_CUTS, "acknowledged and store"),
        _LOST,
    ),
    "a batch and its sum are committed one after the other": mutant(
        f"{_STORE}/sqlite.py",
        "                connection.executemany(_UPSERT_LANE, lanes)\n",
        '                connection.execute("COMMIT; BEGIN IMMEDIATE")\n'
        "                connection.executemany(_UPSERT_LANE, lanes)\n",
        _CUTS,
        "acknowledged and store",
        _LOST,
    ),
    "the horizon of what was forgotten is not written": mutant(
        f"{_STORE}/sqlite.py",
        '            connection.execute("INSERT OR REPLACE INTO forgotten VALUES (1, ?)",'
        " (forgotten,))\n",
        "",
        _CUTS,
        "acknowledged and store",
        _LOST,
    ),
    "a meter's second report is added, too": mutant(
        f"{_STORE}/sqlite.py",
        "            if known := receipts.keys() & meters:\n",
        "            if known := receipts.keys() & set[bytes]():\n",
        _KILLS,
        "kills_lose",
        _TWICE,
    ),
    "the outbox syncs at checkpoints only": Mutant(
        (
            Edit(
                "client/gridveil/outbox.py",
                'database.pragma("synchronous", "FULL")',
                'database.pragma("synchronous", "NORMAL")',
            ),
            Edit(
                "client/gridveil/outbox.py",
                'if database.pragma("synchronous") != 2 or',
                'if database.pragma("synchronous") != 1 or',
            ),
        ),
        Attacks(_CUTS, "acknowledged and outbox"),
        _LOST,
    ),
    "the release log's records are not synced": mutant(
        f"{_LOG}/writer.py",
        "        os.fsync(self._descriptor)\n",
        "",
        _CUTS,
        "acknowledged and log",
        _LOST,
    ),
    "the release log's head is renamed before it is synced": mutant(
        "client/gridveil/files.py",
        "            file.write(data)\n        os.fsync(descriptor)\n",
        "            file.write(data)\n",
        _CUTS,
        "acknowledged and log",
        _LOST,
    ),
}
