"""Many homes behind one gateway: each is followed for itself, and one outbox sends for all."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gridveil.cli.app import app
from gridveil.clock import ScaledClock
from gridveil.meter import Meter
from gridveil.meter_identity import MeterKeys
from gridveil.meters.following import Follower, run_home
from gridveil.meters.gateway import News
from gridveil.meters.homes import HomeSection, load_homes, make_home
from gridveil.meters.sources import Line, open_source
from gridveil.protocol.errors import GridveilError, MalformedInput
from gridveil_services.rpc import Role
from tests.support.epochs import CityKeys, city_keys
from tests.support.pushes import (
    AUTHENTICATION,
    ENCRYPTION,
    EXPORT,
    IMPORT,
    ciphered,
    hdlc,
    notification,
    objects,
    push,
    stamp,
    turns,
    wrapped,
)
from tests.support.receiver import Certificates, Receiver, serving
from tests.support.reports import CITY_ID, WINDOW, city_policy
from tests.support.telegrams import telegram

pytestmark = pytest.mark.long

Q = 900
RATE = 12.0
REGISTERS = f'register = ["import_wh={IMPORT}", "export_wh={EXPORT}"]'


@dataclass
class City:
    """A folder with keys, profiles and a receiver that is served."""

    folder: Path
    keys: CityKeys
    receiver: Receiver
    certificates: Certificates
    clock: ScaledClock
    address: str
    homes: dict[str, MeterKeys]

    def add(self, name: str, text: str, data: bytes | None = None) -> MeterKeys:
        """A home with its keys, and what its meter said."""
        identity = self.homes[name] = MeterKeys.create()
        identity.save(self.folder / f"{name}.key")
        if data is not None:
            (self.folder / f"{name}.bin").write_bytes(data)
        with (self.folder / "homes.toml").open("a") as file:
            file.write(f'[[home]]\nname = "{name}"\nkeys = "{name}.key"\n{text}\n')
        return identity

    def run(self, *more: str, many: bool = True) -> subprocess.CompletedProcess[str]:
        """As ``start``, to their files' ends."""
        running = self.start(*more, many=many)
        told, faults = running.communicate(timeout=150)
        return subprocess.CompletedProcess([], running.returncode, told, faults)

    def start(self, *more: str, many: bool = True) -> subprocess.Popen[str]:
        """``gridveil meters run``, of all of them if not told otherwise."""
        homes = ["--gateway", str(self.folder / "homes.toml")] if many else []
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "gridveil.cli", "meters", "run"),
                *("--profile", str(self.folder), *homes),
                *("--clock-origin", f"{self.clock.origin!r}@{self.clock.started!r}"),
                *("--clock-rate", str(self.clock.rate), *more),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sums(self) -> dict[tuple[str, int], list[int]]:
        """What accepted reports hold, by home and window."""
        names = {identity.meter_id: name for name, identity in self.homes.items()}
        return {
            (names[meter], (window - WINDOW) // Q): self.keys.open_report(
                report, self.homes[names[meter]].member
            )[0]
            for (window, meter), report in self.receiver.accepted.items()
        }


@contextmanager
def city_at(folder: Path, at: float, rate: float = RATE, length: int = Q) -> Iterator[City]:
    clock = ScaledClock(WINDOW + at, time.time(), rate)
    keys = city_keys(city_policy(window_length=length, early_leeway=length // 2))
    receiver, certificates = Receiver(keys, clock), Certificates.make(folder, CITY_ID)
    with serving(receiver, certificates) as address:
        tls = certificates.tls(Role.GATEWAY)
        (folder / "profile.toml").write_text(
            f"""
            city_id = "{CITY_ID.hex()}"
            identity_key = "{keys.identity_key.hex()}"
            development = true
            [aggregator]
            address = "{address}"
            [tls]
            ca = "{tls.ca}"
            certificate = "{tls.certificate}"
            key = "{tls.key}"
            """
        )
        (folder / "ek.hex").write_text(ENCRYPTION.hex())
        (folder / "ak.hex").write_text(AUTHENTICATION.hex())
        yield City(folder, keys, receiver, certificates, clock, address, {})


def quarter(drawn: int) -> bytes:
    return b"".join(telegram(WINDOW + at, 5_000 + drawn * at // Q) for at in range(0, Q + 11, 10))


def pushes(drawn: int, fed: int) -> bytes:
    """A quarter-hour of protected pushes, of which one is spoilt, one sent twice, one plain."""
    frames = [
        hdlc(ciphered(push(WINDOW + at, 7_000 + drawn * at // Q, fed * at // Q), 100 + at))
        for at in range(0, Q + 1, 60)
    ]
    spoilt = bytearray(frames[3])
    spoilt[50] ^= 4
    stranger = hdlc(push(WINDOW + Q // 2, 999_999))
    return b"".join([*frames[:3], bytes(spoilt), frames[2], stranger, *frames[4:]])


SECURE = 'encryption_key = "ek.hex"\nauthentication_key = "ak.hex"\n' + REGISTERS


@pytest.mark.timeout(200)
def test_homes_of_all_kinds_report_in_batches_and_a_bad_one_disturbs_none(tmp_path: Path) -> None:
    with city_at(tmp_path, Q + 12) as city:
        city.add("p1", 'p1 = "p1.bin"', quarter(450))
        city.add("noisy", 'p1 = "noisy.bin"', b"\xff/\x00!!\r\n" * 3000 + quarter(33))
        city.add("secure", f'dlms = "secure.bin"\n{SECURE}', pushes(60, 15))
        kamstrup = b"".join(
            hdlc(notification(turns(stamp(0, local=f"2023-11-14T{time}"), {IMPORT: wh, EXPORT: 0})))
            for time, wh in [("23:15:00", 100), ("23:30:00", 130)]
        )
        zone = f'zone = "Europe/Oslo"\nunit_wh = 10\n{REGISTERS}'
        city.add("turns", f'dlms = "turns.bin"\n{zone}', kamstrup)
        spoilt = city.add("spoilt", 'p1 = "spoilt.bin"', quarter(1))
        states = tmp_path / "outbox.db.registers"
        states.mkdir()
        (states / f"{spoilt.meter_id.hex()}.json").write_text("{}")
        done = city.run("--json")
        again = city.run("--json")
    # Started once more, it concludes nothing again, and says nothing else.
    (counts,) = map(json.loads, again.stdout.splitlines())
    assert not any(counts["windows"].values())
    digests = {report.claim.digest() for report in city.receiver.seen}
    assert len(digests) == len(city.receiver.accepted)
    assert city.sums() == {
        ("p1", 0): [450, 0],
        ("noisy", 0): [33, 0],
        ("secure", 0): [60, 15],
        ("turns", 0): [300, 0],
    }
    assert done.returncode == 1, done.stderr
    assert {call for call, _ in city.receiver.calls} == {"GetCityParameters", "SubmitReports"}
    *news, summary = map(json.loads, done.stdout.splitlines())
    told = {(one["home"], one["fate"]) for one in news if "home" in one}
    assert told == {(name, "recorded") for name in ("p1", "noisy", "secure", "turns")}
    assert summary["faults"] == {"checksum": 1, "replay": 1, "security": 1}
    assert (summary["homes"], summary["waiting"]) == (4, 0)
    for line in ("spoilt: PARTIAL_CORRUPT", "secure: READING_INVALID: push: the checksum"):
        assert line in done.stderr
    assert "999999" not in done.stderr + done.stdout


@pytest.mark.timeout(200)
def test_the_line_of_counts_says_how_all_homes_are_and_windows_that_were_not_sent_are_named(
    tmp_path: Path,
) -> None:
    with city_at(tmp_path, 2 * Q + 12) as city:
        city.add("whole", 'p1 = "whole.bin"', quarter(10) + telegram(WINDOW + 2 * Q, 5_020))
        gap = b"".join(telegram(WINDOW + at, 10 * at) for at in (0, 600, 2 * Q))
        city.add("gap", 'p1 = "gap.bin"', gap)
        done = city.run()
    assert done.returncode in {0, 1}, done.stderr
    lines = done.stdout.splitlines()
    assert "gap: 2023-11-14T22:15:00Z  estimated" in lines
    assert lines[-1].startswith("2 homes; windows: ")
    assert "2 estimated" in lines[-1]
    assert lines[-1].endswith("; 96 telegrams; 0 waiting to be sent")


@pytest.mark.timeout(200)
def test_a_home_whose_meter_pushes_is_reported_from_the_command_line(tmp_path: Path) -> None:
    with city_at(tmp_path, Q + 12) as city:
        city.add("own", 'p1 = "own.bin"', pushes(60, 15))
        done = city.run(
            *("--dlms", str(tmp_path / "own.bin"), "--keys", str(tmp_path / "own.key")),
            *("--register", f"import_wh={IMPORT}", "--register", f"export_wh={EXPORT}"),
            *("--encryption-key", str(tmp_path / "ek.hex")),
            *("--authentication-key", str(tmp_path / "ak.hex")),
            many=False,
        )
    assert done.returncode == 0, done.stderr
    assert city.sums() == {("own", 0): [60, 15]}
    recorded, messages = done.stdout.splitlines()
    assert recorded == "2023-11-14T22:15:00Z  recorded"
    assert messages.startswith("15 telegrams, ")
    assert {call for call, _ in city.receiver.calls} == {"GetCityParameters", "SubmitReport"}


@pytest.mark.timeout(100)
def test_homes_whose_meters_are_away_are_waited_for_until_it_is_stopped(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with city_at(tmp_path, 0) as city:
        city.add("silent", f'dlms = "tcp-listen://127.0.0.1:{port}"')
        city.add("away", 'p1 = "tcp://127.0.0.1:1"')
        running = city.start()
        assert running.stderr is not None
        away = running.stderr.readline()
        connected(port).close()
        running.send_signal(signal.SIGINT)
        told, faults = running.communicate(timeout=60)
    assert running.returncode == 0, faults
    assert told == "2 homes; windows: none yet; 0 telegrams; 0 waiting to be sent\n"
    assert away + faults == "away: UNREACHABLE: nothing listens at the meter's source\n"


def test_the_documents_homes_can_be_loaded(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "meters.md").read_text("utf-8")
    (sample,) = re.findall(r"^```toml\n(.*?)^```$", page, re.M | re.S)
    (tmp_path / "homes.toml").write_text(sample)
    for name in ("house-1", "house-2"):
        MeterKeys.create().save(tmp_path / f"{name}.key")
    (tmp_path / "house-2.ek").write_text(ENCRYPTION.hex())
    (tmp_path / "house-2.ak").write_text(AUTHENTICATION.hex())
    homes, outbox = load_homes(tmp_path / "homes.toml")
    assert [home.name for home in homes] == ["house-1", "house-2"]
    assert outbox == tmp_path / "outbox.db"


def connected(port: int) -> socket.socket:
    for _ in range(200):
        with suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port), 10)
        time.sleep(0.05)
    raise AssertionError("nothing listens")


def test_a_meter_that_connects_itself_is_heard_and_half_a_push_goes_on_in_no_other() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with open_source(f"tcp-listen://127.0.0.1:{port}") as source:
        assert (source.live, source.connection) == (True, 0)
        seen = []
        for sent in (b"first", b"second"):
            with connected(port) as meter:
                meter.sendall(sent)
            got = b""
            while got != sent:
                got += source.read() or b""
            seen.append(source.connection)
        assert seen == [1, 2]


def test_a_meter_that_connected_and_says_nothing_makes_room_for_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = Line(silence=60, baud=2400, idle=1)
    with (
        open_source(f"tcp-listen://127.0.0.1:{port}", line) as source,
        connected(port),
        connected(port) as second,
    ):
        second.sendall(b"second")
        got = b""
        while not got:
            got = source.read() or b""
        assert (got, source.connection) == (b"second", 2)


@pytest.mark.timeout(120)
def test_pushes_by_tcp_are_reported_and_what_was_sent_before_is_refused(tmp_path: Path) -> None:
    length = 60
    with city_at(tmp_path, -5, rate=10.0, length=length) as city:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        identity = MeterKeys.create()
        identity.save(tmp_path / "m.key")
        section = HomeSection(
            name="home",
            keys="m.key",
            dlms=f"tcp-listen://127.0.0.1:{port}",
            register=(f"import_wh={IMPORT}", f"export_wh={EXPORT}"),
            encryption_key="ek.hex",
            authentication_key="ak.hex",
        )
        home, stop, told = make_home(section, tmp_path), threading.Event(), list[object]()
        profile = city.certificates.profile(Role.METER, city.keys, city.address)
        with Meter.open(
            profile, keys=identity, outbox=tmp_path / "o.db", clock=city.clock, draw=lambda: 0.0
        ) as meter:
            follower = home.follower(
                meter, tmp_path / "state", meter.policy(), city.clock, told.append
            )
            running = threading.Thread(target=run_home, args=(meter, follower, stop))
            running.start()
            try:
                talk(port, city, follower)
            finally:
                stop.set()
                running.join()
    for report in city.receiver.accepted.values():
        drawn, fed = city.keys.open_report(report, identity.member)[0]
        assert 3 * (length - 30) <= drawn <= 3 * (length + 30)
        assert fed == 0
    faults = follower.gateway.tally.faults
    assert faults["replay"] >= 1
    assert set(faults) == {"replay"}
    assert all(isinstance(one, News | GridveilError) for one in told)


def talk(port: int, city: City, follower: Follower) -> None:
    """What a meter does: connect, push, go; and somebody else, who repeats what it said."""
    counter, first = 1, b""
    while len(city.receiver.accepted) < 2 or not follower.gateway.tally.faults["replay"]:
        assert city.clock.now() < WINDOW + 20 * 60
        at = int(city.clock.now())
        body = objects(stamp(at), {IMPORT: 3 * (at - WINDOW) + 10_000, EXPORT: 0})
        apdu = wrapped(ciphered(notification(body), counter))
        first, counter = first or apdu, counter + 1
        for sent in (apdu[:60], apdu, first):
            with connected(port) as meter:
                meter.sendall(sent)
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "homes.toml: Object missing required field `home`"),
        ("home = []", "has no homes"),
        ('outbox = "x"\nsurprise = 1', "surprise"),
        ('[[home]]\nname = "a"\nkeys = "a.key"\np1 = "x"\nbaud = 1', "baud"),
        ('[[home]]\nname = "a b"\nkeys = "a.key"\np1 = "x"', "a home's name"),
        ('[[home]]\nname = "a"\nkeys = "a.key"', "home a: a home has either"),
        ('[[home]]\nname = "a"\nkeys = "a.key"\np1 = "x"\ndlms = "y"', "home a: a home has either"),
        ('[[home]]\nname = "a"\nkeys = "none.key"\np1 = "x"', "home a: none.key"),
        ('[[home]]\nname = "a"\nkeys = "a.key"\np1 = "x"\nzone = "UTC"', "P1 telegrams need none"),
        ('[[home]]\nname = "a"\nkeys = "a.key"\ndlms = "x"\nzone = "Mars"', "an IANA name"),
        ('[[home]]\nname = "a"\nkeys = "a.key"\np1 = "x"\nline = "fast"', "2400-8E1"),
        ('[[home]]\nname = "a"\nkeys = "a.key"\np1 = "x"\ntolerance = 999', "tolerance"),
        ('[[home]]\nname = "a"\nkeys = "a.key"\ndlms = "x"\nencryption_key = "a"', "two keys"),
        ('[[home]]\nname = "a"\nkeys = "a.key"\ndlms = "tcp-listen://[::]:4059"', "needs keys"),
        ('[[home]]\nname = "a"\nkeys = "a.key"\np1 = "tcp-listen://0.0.0.0:1"', "needs keys"),
        ('[[home]]\nname = "a"\nkeys = "a.key"\ndlms = "tcp-listen://"', "a source by TCP is"),
        ('[[home]]\nname = "a"\nkeys = "a.key"\np1 = "x"\n' * 2, "the same name"),
        (
            "".join(f'[[home]]\nname = "{n}"\nkeys = "a.key"\np1 = "{n}"\n' for n in "ab"),
            "the same meter's identity",
        ),
        (
            "".join(f'[[home]]\nname = "{n}"\nkeys = "{n}.key"\np1 = "x"\n' for n in "ab"),
            "the same source",
        ),
    ],
)
def test_homes_that_are_configured_wrong_are_refused_by_name(
    text: str, told: str, tmp_path: Path
) -> None:
    for name in "ab":
        MeterKeys.create().save(tmp_path / f"{name}.key")
    (tmp_path / "homes.toml").write_text(text)
    with pytest.raises(MalformedInput) as refused:
        load_homes(tmp_path / "homes.toml")
    assert told in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give one of --p1, --dlms and --gateway"),
        (["--p1", "x", "--dlms", "y"], "give one of --p1, --dlms and --gateway"),
        (["--p1", "x"], "--keys is needed"),
        (["--gateway", "homes.toml", "--keys", "k"], "what is of a home is in its file"),
        (["--gateway", "homes.toml", "--tolerance", "5"], "what is of a home is in its file"),
        (["--gateway", "homes.toml"], "homes.toml does not exist"),
        (["--dlms", "x", "--keys", "a.key", "--encryption-key", "a.key"], "two keys"),
    ],
)
def test_wrong_usage_is_told_in_one_line(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with city_at(tmp_path, 0):
        MeterKeys.create().save(tmp_path / "a.key")
        monkeypatch.chdir(tmp_path)
        ended = CliRunner().invoke(app, ["meters", "run", "--profile", ".", *words])
    assert ended.exit_code == 2
    assert told in ended.stderr
    assert ended.stderr.count("\n") == 1
