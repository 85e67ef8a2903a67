"""Killed at any moment, an aggregator keeps every report that it acknowledged."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gridveil.protocol.report import parse_report
from gridveil.protocol.v1 import report_pb2
from gridveil_services.aggregator.ingest import Accepted
from tests.support.aggregators import IngestHarness
from tests.support.epochs import CityKeys, city_keys
from tests.support.reports import WINDOW

pytestmark = pytest.mark.long

METERS = 800
KILLS = 8

VICTIM = """
import pickle, sys, threading
from pathlib import Path
from gridveil.protocol.v1 import report_pb2
from gridveil_services.aggregator.ingest import Accepted
from tests.support.aggregators import IngestHarness

folder, first = Path(sys.argv[1]), int(sys.argv[2])
keys, reports = pickle.loads((folder / "reports").read_bytes())
harness = IngestHarness(folder, meters=len(reports), keys=keys)
messages = [report_pb2.Report.FromString(data) for data in reports]

def submit(offset):
    for at in range(first + offset, len(messages), 4):
        for answer in harness.submit(messages[at]):
            assert isinstance(answer, Accepted), answer
            sys.stdout.write(f"{at}\\n")
            sys.stdout.flush()

print("ready", flush=True)
threads = [threading.Thread(target=submit, args=(offset,)) for offset in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def run_until_killed(folder: Path, first: int, after_s: float) -> set[int]:
    """Numbers of the reports that were acknowledged before the kill."""
    with subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(folder), str(first)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "ready\n"
        time.sleep(after_s)
        victim.send_signal(signal.SIGKILL)
        lines = victim.stdout.read().split("\n")
    # The last line may be cut in the middle.
    return {int(line) for line in lines[:-1]}


def test_what_was_acknowledged_survives_kills_and_retries_are_duplicates(tmp_path: Path) -> None:
    keys = city_keys()
    maker = IngestHarness(tmp_path / "maker", meters=METERS, keys=keys)
    messages = [maker.report(meter) for meter in range(METERS)]
    maker.close()
    public = CityKeys(keys.parameters, keys.identity, b"", ())
    reports = [message.SerializeToString() for message in messages]
    (tmp_path / "reports").write_bytes(pickle.dumps((public, reports)))
    seed = int(os.environ.get("GRIDVEIL_SEED", random.SystemRandom().randrange(2**32)))
    print(f"GRIDVEIL_SEED={seed}")
    chance = random.Random(seed)
    acknowledged: set[int] = set()
    for _ in range(KILLS):
        first = max(acknowledged, default=-1) + 1
        acknowledged |= run_until_killed(tmp_path, first, chance.uniform(0.0, 0.06))
        check(tmp_path, keys, messages, acknowledged)
    assert acknowledged


def check(
    folder: Path, keys: CityKeys, messages: list[report_pb2.Report], acknowledged: set[int]
) -> None:
    """Whole after the restart, with all that was acknowledged and nothing twice."""
    harness = IngestHarness(folder, meters=METERS, keys=keys)
    window = harness.store.window(WINDOW)
    assert window is not None
    assert window.phase.name == "OPEN"
    known = harness.store.known(WINDOW, [message.meter_id for message in messages])
    digests = [parse_report(message).claim.digest() for message in messages]
    for at in acknowledged:
        assert known[messages[at].meter_id].digest == digests[at]
    answers = harness.submit(*(messages[at] for at in sorted(acknowledged)))
    assert all(isinstance(answer, Accepted) and answer.duplicate for answer in answers)
    assert harness.store.count(WINDOW) == len(known)
    harness.close()
