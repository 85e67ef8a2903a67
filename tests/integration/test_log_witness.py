"""With a witness, a copy of an old disk releases nothing: real folders, real witness processes."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gridveil.cli.app import app
from gridveil.clock import ManualClock
from gridveil.protocol.checkpoint import log_key
from gridveil.protocol.errors import GridveilError, IntegrityLost, MalformedInput, Reason
from gridveil.protocol.note import NoteKey, SignatureType
from gridveil_services.keyholder import witnesses
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.keyholder.policy import Status
from gridveil_services.keyholder.witnesses import WitnessEndpoint, WitnessSettings
from gridveil_services.releaselog.published import PublishedLog
from tests.support.city import TestCity
from tests.support.keyholders import PreparedCity, prepare_city
from tests.support.totals import city_identity
from tests.support.witnesses import WitnessFolder

WAIT_S = 20.0
NOBODY = NoteKey("nobody.example", SignatureType.COSIGNATURE, bytes(32))
ENDPOINT = WitnessEndpoint("http://127.0.0.1:1", NOBODY)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedCity:
    return prepare_city(tmp_path_factory.mktemp("prepared") / "city")


@pytest.fixture
def city(prepared: PreparedCity, tmp_path: Path) -> PreparedCity:
    return prepared.copy(tmp_path / "city")


@pytest.fixture
def witness(city: PreparedCity, tmp_path: Path) -> WitnessFolder:
    return new_witness(city, tmp_path, 1)


@pytest.fixture
def opened() -> Iterator[Callable[[PreparedCity, int], KeyHolder]]:
    """Opens key-holders so many seconds after the window's close; closed at the end."""
    with ExitStack() as closing:
        yield lambda city, late: closing.enter_context(city.open(ManualClock(city.closes + late)))


def new_witness(city: PreparedCity, folder: Path, at: int) -> WitnessFolder:
    key = log_key(city.config.city_id, city.identity_key)
    return WitnessFolder.create(folder / f"witness{at}", key, f"witness.example/{at}")


def watched(city: PreparedCity, threshold: int, *endpoints: WitnessEndpoint) -> PreparedCity:
    settings = WitnessSettings(threshold, endpoints)
    return replace(city, config=replace(city.config, witnesses=settings))


def shown(city: PreparedCity) -> list[str]:
    """The kinds of the records that a reader may rely on."""
    log = PublishedLog(
        city.config.published / "log", log_key(city.config.city_id, city.identity_key)
    )
    return [found.record.WhichOneof("event") or "" for found in log.advance()]


def eventually(holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + WAIT_S
    while not holds() and time.monotonic() < until:
        time.sleep(0.05)
    return holds()


def start_refused(city: PreparedCity) -> Reason:
    with pytest.raises(GridveilError) as refused, city.open():
        pass
    return refused.value.reason


def release(keyholder: KeyHolder, city: PreparedCity) -> None:
    held = keyholder.releases.progress(city.window, city.release.digest) or 0
    keyholder.releases.release(city.release.messages(held))


def test_a_copy_of_the_old_disk_does_not_start(
    city: PreparedCity, witness: WitnessFolder, tmp_path: Path
) -> None:
    """The whole folder, keys and all, as it was before the release; only the witness knows."""
    with witness.process() as endpoint:
        city = watched(city, 1, endpoint)
        with city.open() as keyholder:
            old_disk = city.copy(tmp_path / "old disk")
            release(keyholder, city)
        assert city.events() == ["intent", "released"]
        assert start_refused(old_disk) is Reason.LOG_ROLLED_BACK
        assert old_disk.events() == []
        with city.open():
            pass
        assert start_refused(old_disk) is Reason.LOG_ROLLED_BACK


def test_of_two_key_holders_on_one_disk_image_only_one_opens_the_window(
    city: PreparedCity,
    witness: WitnessFolder,
    tmp_path: Path,
    opened: Callable[[PreparedCity, int], KeyHolder],
) -> None:
    with witness.process() as endpoint:
        city = watched(city, 1, endpoint)
        twin = city.copy(tmp_path / "twin")
        first, second = opened(city, 0), opened(twin, 1)
        release(first, city)
        with pytest.raises(IntegrityLost) as refused:
            release(second, twin)
        assert refused.value.reason in {Reason.LOG_FORKED, Reason.LOG_ROLLED_BACK}
        assert second.ledger.failed
        assert twin.events() == []


def test_a_claim_is_witnessed_before_anything_is_decrypted(
    city: PreparedCity,
    witness: WitnessFolder,
    tmp_path: Path,
    opened: Callable[[PreparedCity, int], KeyHolder],
) -> None:
    """Both claim at the same moment; the one whose claim comes second opens nothing."""
    with witness.process() as endpoint:
        city = watched(city, 1, endpoint)
        twin = city.copy(tmp_path / "twin")
        first, second = opened(city, 0), opened(twin, 1)

        def overtaken(patience_s: float) -> None:
            second.witnesses.confirm(patience_s)
            if first.ledger.state(city.window).status is Status.OPEN:
                release(first, city)

        second.ledger.witness_claims(overtaken)
        with pytest.raises(IntegrityLost):
            release(second, twin)
        assert twin.events() == ["intent"]
        assert second.ledger.failed
        assert city.events() == ["intent", "released"]


def test_without_its_witness_a_key_holder_neither_starts_nor_claims(
    city: PreparedCity, witness: WitnessFolder
) -> None:
    with witness.serve() as endpoint:
        city = watched(city, 1, endpoint)
        with city.open():
            pass
    assert start_refused(city) is Reason.NOT_WITNESSED
    with ExitStack() as closing:
        with witness.serve():
            keyholder = closing.enter_context(city.open())
        with pytest.raises(GridveilError) as refused:
            release(keyholder, city)
        assert refused.value.reason is Reason.NOT_WITNESSED
        assert keyholder.ledger.state(city.window).status is Status.OPEN
        with witness.serve():
            release(keyholder, city)
    assert city.events() == ["intent", "released"]


def test_a_total_is_shown_only_after_it_was_witnessed(
    city: PreparedCity, witness: WitnessFolder
) -> None:
    with witness.serve() as endpoint:
        city = watched(city, 1, endpoint)
        with city.open() as keyholder:
            release(keyholder, city)
            assert "released" in city.events()
            assert "intent" in shown(city)
            assert "released" not in shown(city)
            keyholder.witnesses.start()
            assert eventually(lambda: "released" in shown(city))


def test_two_of_three_witnesses_are_enough_and_one_is_not(
    city: PreparedCity, tmp_path: Path
) -> None:
    folders = [new_witness(city, tmp_path, at) for at in (1, 2, 3)]
    with folders[0].serve() as one:
        with folders[1].serve() as two, folders[2].serve() as three:
            city = watched(city, 2, one, two, three)
            with city.open():
                pass
        with folders[1].serve(), city.open():
            pass
        assert start_refused(city) is Reason.NOT_WITNESSED


def test_enough_witnesses_answer_at_start_to_meet_one_that_saw_the_newest() -> None:
    for number in range(1, 8):
        for threshold in range(1, number + 1):
            asked = quorum(threshold, number)
            assert asked >= threshold
            assert asked + threshold > number


def quorum(threshold: int, witnesses: int) -> int:
    keys = [
        replace(ENDPOINT, key=replace(ENDPOINT.key, name=f"w{at}", public_key=bytes([at]) * 32))
        for at in range(witnesses)
    ]
    return WitnessSettings(threshold, tuple(keys)).quorum_at_start


def test_a_witness_with_another_key_does_not_count(
    city: PreparedCity, witness: WitnessFolder, tmp_path: Path
) -> None:
    other = new_witness(city, tmp_path, 2)
    with witness.serve() as endpoint:
        assert start_refused(watched(city, 1, replace(endpoint, key=other.key))) is (
            Reason.NOT_WITNESSED
        )
        key = replace(other.key, name=witness.name)
        assert start_refused(watched(city, 1, replace(endpoint, key=key))) is Reason.NOT_WITNESSED


def test_a_witness_that_does_not_know_the_log_does_not_count(
    city: PreparedCity, witness: WitnessFolder
) -> None:
    witness.write(log_key(bytes(16), city.identity_key))
    with witness.serve() as endpoint:
        assert start_refused(watched(city, 1, endpoint)) is Reason.NOT_WITNESSED


@pytest.fixture
def dripping() -> Iterator[int]:
    """The port of a server that answers without end, a byte at a time."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            while not ended.is_set():
                with suppress(OSError):
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(b"HTTP/1.1 200 OK\r\n")
                        while not ended.wait(0.05):
                            connection.sendall(b"x")

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        ended.set()
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_witness_that_drips_its_answer_holds_nobody_up(
    city: PreparedCity, dripping: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witnesses, "WHOLE_ANSWER_S", 0.5)
    endpoint = replace(ENDPOINT, url=f"http://127.0.0.1:{dripping}")
    assert start_refused(watched(city, 1, endpoint)) is Reason.NOT_WITNESSED


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc",
        "ftp://x",
        "http://",
        "",
        "127.0.0.1:80",
        "http://x:99999",
        "http://[x",
        "http://u@x",
    ],
)
def test_only_http_addresses_are_taken(url: str) -> None:
    with pytest.raises(MalformedInput):
        replace(ENDPOINT, url=url)


def start_from(city: TestCity, folder: Path) -> subprocess.CompletedProcess[str]:
    """Serve the key-holder of a copy of the city's folder; it must end by itself."""
    command = [
        part.replace(str(city.paths.folder), str(folder)) for part in city.command("keyholder")
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_copied_city_folder_is_good_for_nothing(tmp_path: Path) -> None:
    """Key-holder, witness, totals and auditor as processes, set up by their files only."""
    with TestCity.create(tmp_path, meters=3) as city:
        policy, signer = city_identity(city.paths)
        folder = WitnessFolder.create(
            tmp_path / "witness", log_key(policy.city_id, bytes(signer.verify_key))
        )
        auditor = city.paths.profile("auditor")
        demanded = f'\n[log]\nthreshold = 1\nwitnesses = ["{folder.key.encode()}"]\n'
        auditor.write_text(auditor.read_text() + demanded)

        def cosigned(kind: str) -> bool:
            ended = CliRunner().invoke(app, ["log", "verify", "--profile", str(auditor), "--json"])
            found = json.loads(ended.stdout) if ended.exit_code == 0 else {}
            return found.get("witnesses") == [folder.name] and kind in found["records"]

        with folder.process() as endpoint:
            config = city.paths.config("keyholder")
            section = ["", "[witnesses]", "threshold = 1", "[[witnesses.witness]]"]
            named = [f'url = "{endpoint.url}"', f'key = "{endpoint.key.encode()}"', ""]
            config.write_text(config.read_text() + "\n".join([*section, *named]))
            assert KeyHolderConfig.load(config).witnesses.endpoints == (endpoint,)
            city.start("keyholder")
            city.start("totals")
            assert eventually(lambda: cosigned("policy_stated"))
            city.stop("keyholder")
            shutil.copytree(city.paths.folder, tmp_path / "old")
            city.start("keyholder")
            city.enrol()
            assert eventually(lambda: cosigned("roster_changed"))
            city.stop("keyholder")

            ended = start_from(city, tmp_path / "old")
            assert (ended.returncode, ended.stdout) == (2, "")
            assert "LOG_ROLLED_BACK" in ended.stderr.splitlines()[-1]
            city.start("keyholder")
            city.stop("keyholder")
        ended = start_from(city, city.paths.folder)
        assert ended.returncode == 2
        assert "NOT_WITNESSED" in ended.stderr.splitlines()[-1]
