"""``gridveil meters run`` is killed within a window, and the window is whole all the same."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gridveil.clock import ScaledClock
from gridveil.meter_identity import MeterKeys
from gridveil_services.rpc import Role
from tests.support.epochs import city_keys
from tests.support.receiver import Certificates, Receiver, serving
from tests.support.reports import CITY_ID, WINDOW
from tests.support.telegrams import telegram

pytestmark = pytest.mark.long

RATE = 12.0
BEGINNING = b"".join(telegram(WINDOW + at, 10_000 + at) for at in range(0, 400, 10))
REST = b"".join(telegram(WINDOW + at, 10_000 + at) for at in range(400, 911, 10))


def write_profile(path: Path, certificates: Certificates, key: bytes, address: str) -> None:
    tls = certificates.tls(Role.METER)
    path.write_text(
        f"""
        city_id = "{CITY_ID.hex()}"
        identity_key = "{key.hex()}"
        development = true
        [aggregator]
        address = "{address}"
        [tls]
        ca = "{tls.ca}"
        certificate = "{tls.certificate}"
        key = "{tls.key}"
        """
    )


def started(folder: Path, clock: ScaledClock) -> subprocess.Popen[str]:
    """The gateway, reading a pipe."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "gridveil.cli", "meters", "run"),
            *("--profile", str(folder), "--keys", str(folder / "meter.key")),
            *("--p1", str(folder / "p1")),
            *("--clock-origin", f"{clock.origin!r}@{clock.started!r}"),
            *("--clock-rate", str(clock.rate)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(200)
def test_a_gateway_that_is_killed_within_a_window_reports_all_of_it(tmp_path: Path) -> None:
    clock = ScaledClock(WINDOW + 600, time.time(), RATE)
    keys, identity = city_keys(), MeterKeys.create()
    receiver, certificates = Receiver(keys, clock), Certificates.make(tmp_path, CITY_ID)
    identity.save(tmp_path / "meter.key")
    os.mkfifo(tmp_path / "p1")
    kept = tmp_path / "outbox.db.registers"
    with serving(receiver, certificates) as address:
        write_profile(tmp_path / "profile.toml", certificates, keys.identity_key, address)
        first = started(tmp_path, clock)
        with (tmp_path / "p1").open("wb") as pipe:
            pipe.write(BEGINNING)
            pipe.flush()
            while not kept.exists():
                assert first.poll() is None
                time.sleep(0.02)
            first.kill()
            first.communicate()
        second = started(tmp_path, clock)
        with (tmp_path / "p1").open("wb") as pipe:
            pipe.write(REST)
        told, faults = second.communicate(timeout=120)
    assert (second.returncode, faults) == (0, "")
    assert told == "2023-11-14T22:15:00Z  recorded\n52 telegrams\n"
    (report,) = receiver.accepted.values()
    assert keys.open_report(report, identity.member)[0] == [900, 0]
