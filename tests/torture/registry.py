"""All kinds of faults. A further kind: a module in kinds/ with a KIND, and a line here."""

from __future__ import annotations

from tests.torture.kinds import (
    failovers,
    kill_ingest,
    kill_store,
    partitions,
    power_log,
    power_outbox,
    power_store,
    simulated,
    stateful,
    syscalls_release,
    syscalls_store,
)
from tests.torture.tally import Kind

KINDS: tuple[Kind, ...] = (
    power_store.KIND,
    power_outbox.KIND,
    power_log.KIND,
    kill_store.KIND,
    kill_ingest.KIND,
    syscalls_store.KIND,
    syscalls_release.KIND,
    failovers.KIND,
    partitions.KIND,
    stateful.KIND,
    simulated.KIND,
)
