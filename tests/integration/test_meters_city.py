"""Recorded P1 telegrams go in at one end of a whole city, and a verified total comes out."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gridveil.cli.app import app
from gridveil.meter_identity import MeterKeys
from gridveil.meters.sources import open_source
from gridveil.operator import Operator, ReleasedTotal
from gridveil.protocol.errors import MalformedInput, Reason, Unavailable
from gridveil.simulator import CsvSource, Simulator, Tally
from tests.support.city import TestCity
from tests.support.telegrams import telegram

pytestmark = pytest.mark.long

FLEET = 100
HOMES = [(412, 0), (0, 1_250), (77, 3)]
"""Wh that three homes draw and feed in, in the window."""


def recorded(window: int, drawn: int, fed: int) -> bytes:
    """A quarter-hour of telegrams, one of them damaged, from a register that stood somewhere."""
    stream = [
        telegram(window + at, 123_456 + drawn * at // 900, 99_000 + fed * at // 900)
        for at in range(0, 911, 10)
    ]
    stream[40] = stream[40].replace(b"(230.0*V)", b"(238.0*V)")
    return b"".join(stream)


def run_home(city: TestCity, folder: Path, keys: MeterKeys, stream: bytes) -> subprocess.Popen[str]:
    """``gridveil meters run`` on a recorded stream."""
    folder.mkdir()
    keys.save(folder / "meter.key")
    (folder / "p1.txt").write_bytes(stream)
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "gridveil.cli", "meters", "run", "--json"),
            *("--profile", str(city.paths.profile("meter"))),
            *("--keys", str(folder / "meter.key"), "--p1", str(folder / "p1.txt")),
            *city.clock_arguments(),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(280)
def test_recorded_telegrams_become_part_of_a_verified_total(tmp_path: Path) -> None:
    with TestCity.create(tmp_path, meters=FLEET + len(HOMES), rate=60, grace=3600) as city:
        city.start_all()
        window = city.enrol().effective_window
        fleet, homes = city.meters[:FLEET], city.meters[FLEET:]
        rows = [f"home {at},{at}" for at in range(FLEET)]
        (tmp_path / "readings.csv").write_text("\n".join(["meter_id,first", *rows]))
        source = CsvSource(tmp_path / "readings.csv", window)
        simulator = Simulator(
            city.profile("gateway"), fleet, source, tmp_path / "fleet.db", clock=city.clock
        )
        running = [
            run_home(city, tmp_path / f"home{at}", keys, recorded(window, *HOMES[at]))
            for at, keys in enumerate(homes)
        ]
        tallies: list[Tally] = []
        with simulator:
            tallies.append(simulator.run(window, 1))
        for home in running:
            told, faults = home.communicate(timeout=120)
            assert home.returncode == 0, faults
            *news, summary = map(json.loads, told.splitlines())
            assert [(one["window_start"], one["fate"]) for one in news] == [(window, "recorded")]
            assert (summary["telegrams"], summary["faults"]) == (91, {"checksum": 1})
            assert "checksum" in faults
        assert tallies[0].accepted == FLEET
        with Operator.open(city.profile("operator")) as operator:
            total = next(iter(operator.watch(window)))
    assert isinstance(total, ReleasedTotal)
    assert total.count == FLEET + len(HOMES)
    assert total.sum("import_wh") == sum(range(FLEET)) + sum(drawn for drawn, _ in HOMES)
    assert total.sum("export_wh") == sum(fed for _, fed in HOMES)


def test_telegrams_come_from_a_serial_port_tcp_or_a_file(tmp_path: Path) -> None:
    sent = telegram(1_767_225_600, 5)
    (tmp_path / "p1.txt").write_bytes(sent)
    with open_source(str(tmp_path / "p1.txt")) as file:
        assert (file.read(), file.read(), file.live) == (sent, b"", False)
    ours, theirs = pty.openpty()
    with open_source(os.ttyname(theirs)) as port:
        os.write(ours, sent)
        got = b""
        while len(got) < len(sent):
            got += port.read() or b""
        assert (got, port.live) == (sent, True)
    os.close(ours)
    os.close(theirs)
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: serve_once(server, sent))
        thread.start()
        with open_source(f"tcp://127.0.0.1:{server.getsockname()[1]}") as tcp:
            got = b""
            while len(got) < len(sent):
                got += tcp.read() or b""
            assert (got, tcp.live) == (sent, True)
            with pytest.raises(Unavailable) as gone:
                list(iter(tcp.read, b""))
        thread.join()
    assert gone.value.reason is Reason.UNREACHABLE


def serve_once(server: socket.socket, data: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(data)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("tcp://127.0.0.1", MalformedInput),
        ("tcp://127.0.0.1:99999", MalformedInput),
        ("tcp://127.0.0.1:1", Unavailable),
        ("/dev/gridveil-no-such-port", Unavailable),
    ],
)
def test_a_source_that_is_not_there_is_refused(source: str, error: type[Exception]) -> None:
    with pytest.raises(error), open_source(source):
        pass


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--register", "import_wh=1.8.0"], "an OBIS code looks like 1-0:1.8.0"),
        (["--profile", "nowhere.toml"], "nowhere.toml does not exist"),
    ],
)
def test_wrong_usage_is_told_in_one_line(more: list[str], told: str, tmp_path: Path) -> None:
    with TestCity.create(tmp_path) as city:
        profile = ["--profile", str(city.paths.profile("meter"))]
        words = ["meters", "run", *profile, "--p1", "x", "--keys", str(tmp_path / "k"), *more]
        ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 2
    assert told in ended.stderr
    assert ended.stderr.count("\n") == 1
