"""Whichever system call fails, or is the last: what is stored is whole, and says nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.torture.kinds import syscalls_release, syscalls_store
from tests.torture.tally import Tally

SEED = int(os.environ.get("GRIDVEIL_SEED", "7"))
WRONG = "not whole after a failed system call"


@pytest.mark.requires_tool("strace", "apt-get install strace")
@pytest.mark.parametrize(
    ("run", "faults"),
    [
        pytest.param(syscalls_store.run, 30, id="store"),
        pytest.param(syscalls_release.run, 15, id="release"),
    ],
)
def test_a_system_call_that_fails_leaves_what_is_stored_whole(
    run: Callable[[int, int], Tally], faults: int
) -> None:
    tally = run(SEED, faults)
    assert not tally.violations, f"{WRONG}: {tally.violations[:5]}"
    assert tally.injected >= faults
    assert tally.counts["kills"]
    assert tally.counts["errors"]
