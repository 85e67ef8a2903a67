"""Whatever moment a key-holder dies at, its restart gives the same answer or none yet."""

from __future__ import annotations

import resource
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from gridveil.clock import ManualClock
from gridveil.protocol.errors import GridveilError, Reason, Unavailable
from gridveil.protocol.merkle import Tree, leaf_hash
from gridveil.protocol.v1.log_pb2 import LogRecord
from gridveil_services.keyholder import identity
from gridveil_services.keyholder.at_rest import AtRest
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.keyholder.policy import Status
from gridveil_services.releaselog.framing import EMPTY, Head, read_frames
from gridveil_services.releaselog.signing import LogSigner
from tests.support.keyholders import PreparedCity, prepare_city, unpublishable
from tests.support.reports import build_release


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedCity:
    return prepare_city(tmp_path_factory.mktemp("prepared") / "city")


@pytest.fixture
def city(prepared: PreparedCity, tmp_path: Path) -> PreparedCity:
    return prepared.copy(tmp_path / "city")


def signed_total(city: PreparedCity) -> bytes:
    """The bytes of the window's released total in the log."""
    (signed,) = (
        record.released.total.SerializeToString()
        for record in city.log().poll()
        if record.WhichOneof("event") == "released"
    )
    return signed


def fail_before_result(city: PreparedCity) -> None:
    """A release that was opened and whose outcome could not be written."""
    with city.open() as keyholder, unpublishable(city, city.window):
        with pytest.raises(Unavailable) as refusal:
            keyholder.releases.release(city.release.messages())
        assert refusal.value.reason is Reason.KEYHOLDER_UNAVAILABLE
        assert keyholder.ring.decryptions(city.window) == 1
        # Not again in this process, whoever asks.
        for release in (city.release, build_release(city.parameters, 1, city.reports[:119])):
            with pytest.raises(GridveilError):
                keyholder.releases.release(release.messages())
        keyholder.upkeep.tick()
        assert keyholder.ring.decryptions(city.window) == 1
    assert city.events() == ["intent"]


def test_a_release_that_was_opened_and_not_recorded_is_settled_at_the_next_start(
    prepared: PreparedCity, tmp_path: Path
) -> None:
    undisturbed = prepared.copy(tmp_path / "undisturbed")
    with undisturbed.open() as keyholder:
        keyholder.releases.release(undisturbed.release.messages())
    city = prepared.copy(tmp_path / "city")
    fail_before_result(city)
    with city.open() as keyholder:
        assert keyholder.ring.decryptions(city.window) == 1
        again = keyholder.releases.release(iter([city.release.header_message()]))
        assert again.replayed
        assert keyholder.ring.decryptions(city.window) == 1
    assert city.events() == ["intent", "released"]
    assert signed_total(city) == signed_total(undisturbed)
    published = (undisturbed.config.published / "entries" / str(city.window)).read_bytes()
    assert (city.config.published / "entries" / str(city.window)).read_bytes() == published


def test_many_failures_in_a_row_end_in_the_same_total(city: PreparedCity) -> None:
    fail_before_result(city)
    for _ in range(5):
        with unpublishable(city, city.window), pytest.raises(Unavailable):
            KeyHolder(city.config, ManualClock(city.closes))
        assert city.events() == ["intent"]
    with city.open():
        pass
    assert city.events() == ["intent", "released"]
    assert tuple(r.sum for r in city.totals()[city.window].registers) == city.truth


def test_a_claim_is_settled_after_its_expiry_too(city: PreparedCity) -> None:
    fail_before_result(city)
    with city.open(ManualClock(city.expires + 900)):
        pass
    assert city.events() == ["intent", "released"]


@pytest.mark.parametrize("name", ["header", "lanes", "entries"])
@pytest.mark.parametrize("damage", ["missing", "changed", "shorter", "longer"])
def test_a_claimed_release_that_is_not_whole_is_refused_for_ever(
    city: PreparedCity, name: str, damage: str
) -> None:
    fail_before_result(city)
    (folder,) = (city.config.state / "spool").iterdir()
    data = (folder / name).read_bytes()
    if damage == "missing":
        (folder / name).unlink()
    elif damage == "changed":
        middle = len(data) // 2
        changed = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        (folder / name).write_bytes(changed)
    else:
        (folder / name).write_bytes(data[:-1] if damage == "shorter" else data + b"\x00")
    for _ in range(2):
        with city.open() as keyholder:
            assert keyholder.ring.decryptions(city.window) == 0
            with pytest.raises(GridveilError) as refusal:
                keyholder.releases.release(city.release.messages())
            assert refusal.value.reason is Reason.REFUSED
    assert city.events() == ["intent", "refused"]


def test_a_claimed_release_whose_roster_is_gone_keeps_the_key_holder_from_starting(
    city: PreparedCity,
) -> None:
    fail_before_result(city)
    for path in city.config.state.glob("roster.db*"):
        path.unlink()
    with pytest.raises(GridveilError) as refusal:
        KeyHolder(city.config, ManualClock(city.closes))
    assert refusal.value.reason is Reason.PARTIAL_CORRUPT
    assert city.events() == ["intent"]


@dataclass(frozen=True)
class Written:
    """What a log consists of once some record is acknowledged."""

    head: Head
    checkpoint: bytes


def acknowledged(city: PreparedCity) -> tuple[Written, Written, Written]:
    """The log before the claim, after it, and after the total."""
    config, tree = city.config, Tree()
    at_rest = AtRest.load(config.key_encrypting_key_file, config.city_id)
    signer = LogSigner(config.city_id, identity.load(config.state, at_rest))
    found = []
    with (config.published / "log" / "records").open("rb") as file:
        for head, payload in read_frames(file, EMPTY):
            tree.append(leaf_hash(payload))
            note = signer.sign(tree.size, tree.root(tree.size))
            kind = LogRecord.FromString(payload).WhichOneof("event")
            found.append((kind, Written(head, note.encode())))
    *_, (_, last), (claim, claimed), (_, settled) = found
    assert claim == "intent"
    return last, claimed, settled


def test_every_way_a_power_cut_leaves_the_log_ends_in_the_one_total(
    prepared: PreparedCity, tmp_path: Path
) -> None:
    crashed = prepared.copy(tmp_path / "crashed")
    fail_before_result(crashed)
    finished = crashed.copy(tmp_path / "finished")
    with finished.open():
        pass
    expected = signed_total(finished)
    records = (finished.config.published / "log" / "records").read_bytes()
    states = acknowledged(finished)
    before, claimed, settled = (state.head.size for state in states)
    sizes = sorted({before, claimed, settled, *range(before, settled, 61)})
    for size in sizes:
        for state in [state for state in states if state.head.size <= size][-2:]:
            city = crashed.copy(tmp_path / f"{size}-{state.head.size}")
            log = city.config.published / "log"
            (log / "records").write_bytes(records[:size])
            (log / "head").write_bytes(state.head.encode())
            (log / "checkpoint").write_bytes(state.checkpoint)
            with city.open() as keyholder:
                claim_is_there = size >= claimed
                status = keyholder.ledger.state(city.window).status
                assert status is (Status.RELEASED if claim_is_there else Status.OPEN)
                assert keyholder.ring.decryptions(city.window) == (claimed <= size < settled)
                held = keyholder.releases.progress(city.window, city.release.digest)
                assert held == (None if claim_is_there else len(city.release.entries))
                keyholder.releases.release(city.release.messages(offset=held or 0))
            assert city.events() == ["intent", "released"]
            assert signed_total(city) == expected
            shutil.rmtree(city.folder)


def test_a_failed_log_stops_the_release_before_anything_is_decrypted(city: PreparedCity) -> None:
    log, aside = city.config.published / "log", city.config.published / "aside"
    with city.open() as keyholder:
        log.rename(aside)
        with pytest.raises(Unavailable) as refusal:
            keyholder.releases.release(city.release.messages())
        assert refusal.value.reason is Reason.KEYHOLDER_UNAVAILABLE
        assert keyholder.ring.decryptions(city.window) == 0
        aside.rename(log)
        with pytest.raises(Unavailable):
            keyholder.releases.release(city.release.messages())
        assert keyholder.ring.decryptions(city.window) == 0
    # The claim may have reached the disk: then its release, which is whole, is settled now.
    with city.open() as keyholder:
        keyholder.releases.release(city.release.messages())
        assert keyholder.ring.decryptions(city.window) == 1
    assert city.events() == ["intent", "released"]


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """No file of this process can grow beyond ``size`` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_before_the_claim_only_delays_the_release(city: PreparedCity) -> None:
    with city.open() as keyholder:
        with files_at_most(10_000), pytest.raises(Unavailable) as refusal:
            keyholder.releases.release(city.release.messages())
        assert refusal.value.reason is Reason.KEYHOLDER_UNAVAILABLE
        assert keyholder.ring.decryptions(city.window) == 0
        held = keyholder.releases.progress(city.window, city.release.digest)
        assert held == 0
        keyholder.releases.release(city.release.messages())
        assert keyholder.ring.decryptions(city.window) == 1
    assert tuple(r.sum for r in city.totals()[city.window].registers) == city.truth


def test_a_full_disk_after_the_claim_exposes_nothing_and_a_restart_finishes(
    tmp_path: Path,
) -> None:
    city = prepare_city(tmp_path / "city", meters=200)
    with city.open() as keyholder:
        # What comes in fits; the opened entries, 32 bytes longer each, do not.
        with files_at_most(len(city.release.entries) + 1000), pytest.raises(Unavailable):
            keyholder.releases.release(city.release.messages())
        assert keyholder.ledger.failed
    assert city.events() == ["intent"]
    assert city.totals() == {}
    with city.open():
        pass
    assert city.events() == ["intent", "released"]


def test_a_second_key_holder_on_the_same_state_is_refused(city: PreparedCity) -> None:
    with city.open():
        with pytest.raises(Unavailable) as refusal:
            KeyHolder(city.config, ManualClock(city.closes))
        assert refusal.value.reason is Reason.KEYHOLDER_UNAVAILABLE
    with city.open():
        pass


def test_the_spool_of_a_settled_window_is_gone_after_a_restart(city: PreparedCity) -> None:
    fail_before_result(city)
    spool = city.config.state / "spool"
    shutil.copytree(spool, city.folder / "kept")
    with city.open():
        pass
    assert list(spool.iterdir()) == []
    shutil.copytree(city.folder / "kept", spool, dirs_exist_ok=True)
    with city.open() as keyholder:
        assert keyholder.ring.decryptions(city.window) == 0
    assert list(spool.iterdir()) == []


def test_nothing_of_a_refused_window_stays_published(city: PreparedCity) -> None:
    fail_before_result(city)
    entries = city.config.published / "entries"
    (entries / str(city.window)).write_bytes(b"opened entries that a crash left")
    (entries / f"{city.window}.new").write_bytes(b"opened entries that a crash left")
    shutil.rmtree(city.config.state / "spool")
    with city.open():
        pass
    assert city.events() == ["intent", "refused"]
    assert list(entries.iterdir()) == []


def test_a_shutdown_in_the_middle_of_a_release_never_costs_the_window(
    prepared: PreparedCity, tmp_path: Path
) -> None:
    for attempt in range(4):
        city = prepared.copy(tmp_path / str(attempt))
        log = city.log()

        def release(keyholder: KeyHolder, city: PreparedCity = city) -> None:
            with suppress(GridveilError):
                keyholder.releases.release(city.release.messages())

        with city.open() as keyholder:
            log.poll()
            worker = threading.Thread(target=release, args=(keyholder,))
            worker.start()
            while not log.poll():
                time.sleep(0.001)
            time.sleep(0.004 * attempt)
        worker.join()
        with city.open():
            pass
        assert city.events() == ["intent", "released"]
