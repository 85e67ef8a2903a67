"""A meter killed at any moment loses no recorded report and never makes a second one."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import apsw
import pytest

from gridveil.meter_identity import MeterKeys
from gridveil.outbox import Outbox
from gridveil.protocol.report import parse_report
from gridveil.protocol.v1 import report_pb2
from tests.support.epochs import city_keys
from tests.support.reports import CITY_ID, WINDOW

pytestmark = pytest.mark.long

KILLS = 12

# Records one window after the other, again from the first one after a restart, and prints each
# report's digest once record() has returned.
PROGRAM = """
import sys
from pathlib import Path

import gridveil.encryption
from gridveil.clock import ManualClock
from gridveil.meter import MeterKeys
from gridveil.outbox import Outbox
from gridveil.profile import Profile, Tls
from gridveil.protocol.v1 import aggregator_pb2
from gridveil.reporting import ReportBuilder, signed_reading
from gridveil.submission import Submitter
from gridveil.submission_calls import run_steps

folder, first = Path(sys.argv[1]), int(sys.argv[4])
city, identity = map(bytes.fromhex, sys.argv[2:4])
keys = MeterKeys.load(folder / "meter.key")
signed = aggregator_pb2.SignedCityParameters.FromString((folder / "parameters").read_bytes())
profile = Profile(city, identity, True, {}, Tls(folder, folder, folder))
outbox = Outbox(folder / "outbox.db", city)
clock = ManualClock(0.0)


def build(parameters, meter, window, values):
    return ReportBuilder(parameters, keys).build(window, values)


submitter = Submitter(profile, outbox, clock, build)
print("ready", flush=True)
for at in range(200):
    window = first + 900 * at
    clock.move_to(window + 900)
    run_steps(submitter.record(keys.meter_id, window, signed_reading(at)), lambda call: signed)
    print(window, flush=True)
"""


def run_and_kill(folder: Path, arguments: list[str], source: random.Random) -> set[int]:
    """The windows that were recorded for sure before SIGKILL at some moment."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    lines = [process.stdout.readline() for _ in range(source.randrange(15))]
    time.sleep(source.uniform(0.0, 0.01))
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.readlines()
    process.wait()
    process.stdout.close()
    return {int(line) for line in lines}


def stored(folder: Path) -> dict[int, bytes]:
    """Digest of every waiting report, by window."""
    Outbox(folder / "outbox.db", CITY_ID).close()
    database = apsw.Connection(str(folder / "outbox.db"))
    rows = database.execute(
        "SELECT window, report FROM entries LEFT JOIN reports USING (window, meter)"
    ).fetchall()
    database.close()
    found: dict[int, bytes] = {}
    for window, report in rows:
        assert isinstance(window, int)
        assert isinstance(report, bytes), "an entry without its report"
        parsed = parse_report(report_pb2.Report.FromString(report))
        assert parsed.claim.window_start == window
        found[window] = hashlib.sha256(report).digest()
    return found


@pytest.mark.timeout(240)
def test_kill_9_while_recording_loses_nothing_and_blinds_nothing_twice(tmp_path: Path) -> None:
    city = city_keys()
    MeterKeys.create().save(tmp_path / "meter.key")
    (tmp_path / "parameters").write_bytes(city.signed().SerializeToString())
    arguments = [CITY_ID.hex(), city.identity_key.hex(), str(WINDOW)]
    source = random.Random(7)
    before: dict[int, bytes] = {}
    acknowledged: set[int] = set()
    for _ in range(KILLS):
        acknowledged |= run_and_kill(tmp_path, arguments, source)
        after = stored(tmp_path)
        assert acknowledged <= after.keys()
        assert before.items() <= after.items()
        before = after
    assert len(acknowledged) > 5
