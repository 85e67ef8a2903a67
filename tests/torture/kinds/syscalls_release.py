"""System calls that fail under the key-holder: one release, from its first message to its total.

python -m tests.torture.kinds.syscalls_release SEED CASES
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gridveil.cli.fsck import Found, check_path
from gridveil.clock import ManualClock
from gridveil.fsck import Trust, checkers
from gridveil.protocol.errors import GridveilError
from gridveil.protocol.release import Total
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.releaselog.reader import LogReader
from gridveil_services.rpc.logging import configure_structlog
from tests.support.failpoints import config_in
from tests.support.keyholders import PreparedCity, prepare_city
from tests.torture.kinds.power_store import scratch
from tests.torture.kinds.strace import TOOL, Ended, run_as_program, try_all
from tests.torture.tally import Kind, Tally


def work(city: PreparedCity, folder: Path, say: Callable[[str], None]) -> None:
    """Open the key-holder, release a window, say the total, close."""
    keyholder = KeyHolder(config_in(folder, city.config), ManualClock(city.closes))
    keyholder.releases.release(city.release.messages())
    say(total_in(folder).hex())
    keyholder.close()


def total_in(folder: Path) -> bytes:
    """The one total in the log, as it is signed."""
    records = LogReader(folder / "published" / "log").poll()
    (released,) = [record.released for record in records if record.HasField("released")]
    return released.total.total


def wrong(city: PreparedCity, folder: Path, ended: Ended) -> str:
    """What is wrong with what is left; fsck looks first, then a key-holder goes on with it."""
    if ended.code not in (0, 1, -9):
        return f"the process ended with {ended.code}"
    totals = [line for line in ended.said if not line.startswith("failed")]
    for path in (folder / "published", folder / "state"):
        if not path.exists():
            return f"{path.name} is gone"
        trust = Trust(city.config.city_id, city.identity_key)
        found, answer = check_path(path, trust, checkers())
        if found is not Found.WHOLE:
            return f"fsck: {answer['problem']}"
    try:
        keyholder = KeyHolder(config_in(folder, city.config), ManualClock(city.closes))
    except GridveilError as error:
        return f"it does not open again: {error}"
    try:
        # As the aggregator goes on: it asks what the key-holder holds already.
        held = keyholder.releases.progress(city.window, city.release.digest)
        keyholder.releases.release(city.release.messages(held or 0))
        total = total_in(folder)
    except GridveilError as error:
        return f"it does not release again: {error}"
    finally:
        keyholder.close()
    if totals and totals != [total.hex()]:
        return "it released another total"
    if tuple(register.sum for register in Total.decode(total).registers) != city.truth:
        return "the total is not the sum"
    return ""


def run(seed: int, budget: int) -> Tally:
    """Inject so many faults."""
    return run_as_program("tests.torture.kinds.syscalls_release", seed, budget)


KIND = Kind(
    "system calls, a release",
    "Each write, sync, renaming, opening and removal of a key-holder that starts and releases a"
    " window fails with EIO or ENOSPC, or is the last thing that the process does. What is left is"
    " whole by gridveil fsck; a key-holder that goes on with it gives the same total, and the right"
    " one.",
    run,
    {"short": 15, "long": 300},
    tool=TOOL,
)


def _copy(folder: Path, live: Path) -> None:
    shutil.copytree(folder, live)


def main() -> None:
    """Inject as the command line says; the account as JSON."""
    configure_structlog("keyholder")
    with scratch() as folder:
        city = prepare_city(folder / "city")
        tally = try_all(
            int(sys.argv[1]),
            int(sys.argv[2]),
            folder,
            partial(_copy, city.folder),
            partial(work, city),
            partial(wrong, city),
        )
    print(json.dumps(tally.to_json()))


if __name__ == "__main__":
    main()
