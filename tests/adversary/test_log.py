"""Who rewrites, forks or puts back the release log, or starts a copy of the key-holder's disk.

The attacker has the published folder, old copies of it, a totals service of its own, and where a
test says so the identity key. Nobody believes it; with a witness an old disk opens nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from gridveil.clock import ManualClock
from gridveil.log_view import LogView
from gridveil.profile import LogTrust, Profile, Tls
from gridveil.protocol.checkpoint import (
    TreeHead,
    WitnessPolicy,
    log_key,
    log_origin,
    open_checkpoint,
)
from gridveil.protocol.errors import GridveilError
from gridveil.protocol.merkle import Tree, leaf_hash
from gridveil.protocol.note import NoteKey
from gridveil.protocol.v1 import totals_pb2
from gridveil.protocol.witnessing import AddCheckpoint
from gridveil.settlements import OutcomeOpener
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.keyholder.policy import Status
from gridveil_services.keyholder.witnesses import WitnessEndpoint, WitnessSettings
from gridveil_services.releaselog.published import PublishedLog
from gridveil_services.releaselog.signing import LogSigner
from tests.adversary.city import DECRYPTED
from tests.support.keyholders import PreparedCity, prepare_city
from tests.support.totals import expired, proven, refused
from tests.support.witnesses import WitnessFolder

BELIEVED = "somebody believed what the log does not say"
STARTED = "a key-holder started from an old copy"
SIGNED = "a checkpoint was signed over records that are not there"
COSIGNED = "a witness cosigned two logs"
SHOWN = "something was shown that no witness has seen"

CITY = bytes(range(16))
KEY = SigningKey(b"k" * 32)
SIGNER = LogSigner(CITY, KEY)
LOG_KEY = log_key(CITY, bytes(KEY.verify_key))
HONEST = [expired(900 * at) for at in range(1, 10)]
FORKED = [*HONEST[:4], refused(4500), *HONEST[5:]]


def tree_of(records: Sequence[object]) -> Tree:
    return Tree(leaf_hash(record.SerializeToString(deterministic=True)) for record in records)  # type: ignore[attr-defined]


def profile(folder: Path, policy: WitnessPolicy | None = None) -> Profile:
    trust = LogTrust(folder / "checkpoint", policy or WitnessPolicy())
    return Profile(CITY, bytes(KEY.verify_key), True, {}, Tls(folder, folder, folder), trust)


def believes(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except GridveilError:
        return False
    return True


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedCity:
    return prepare_city(tmp_path_factory.mktemp("prepared") / "city")


@pytest.fixture
def city(prepared: PreparedCity, tmp_path: Path) -> PreparedCity:
    return prepared.copy(tmp_path / "city")


@pytest.fixture
def witness(city: PreparedCity, tmp_path: Path) -> WitnessFolder:
    return WitnessFolder.create(tmp_path / "witness", city_key(city))


@pytest.fixture
def witnessed(city: PreparedCity, witness: WitnessFolder) -> Iterator[PreparedCity]:
    """The city, with a witness that serves."""
    with witness.serve() as endpoint:
        yield watched_by(city, endpoint)


def city_key(city: PreparedCity) -> NoteKey:
    return log_key(city.config.city_id, city.identity_key)


def watched_by(city: PreparedCity, endpoint: WitnessEndpoint) -> PreparedCity:
    return replace(city, config=replace(city.config, witnesses=WitnessSettings(1, (endpoint,))))


def release(keyholder: KeyHolder, city: PreparedCity) -> None:
    keyholder.releases.release(city.release.messages())


def changed(message: totals_pb2.WindowOutcome, **fields: object) -> totals_pb2.WindowOutcome:
    copy = totals_pb2.WindowOutcome()
    copy.CopyFrom(message)
    copy.MergeFrom(totals_pb2.WindowOutcome(**fields))  # type: ignore[arg-type]
    return copy


def test_a_record_that_is_not_in_the_log_is_not_believed(tmp_path: Path) -> None:
    """A totals service shows a refusal where the log has an expiry, with every proof it has."""
    opener, made_up = OutcomeOpener(profile(tmp_path)), proven(SIGNER, FORKED, 4)
    shown = proven(SIGNER, HONEST, 4)
    made_up.proof.checkpoint = shown.proof.checkpoint
    assert not believes(lambda: opener.open(made_up)), BELIEVED
    assert believes(lambda: opener.open(shown))


def test_another_outcome_than_the_record_says_is_not_believed(tmp_path: Path) -> None:
    opener, shown = OutcomeOpener(profile(tmp_path)), proven(SIGNER, HONEST, 4)
    for lie in (
        changed(shown, not_released=totals_pb2.NOT_RELEASED_REASON_REFUSED),
        changed(shown, window_start=900),
    ):
        assert not believes(lambda message=lie: opener.open(message)), BELIEVED  # type: ignore[misc]


@pytest.mark.parametrize("size", [5, 7, 8, 9])
def test_a_forked_log_is_not_followed(tmp_path: Path, size: int) -> None:
    """Signed by the very key, with whatever proof its own tree has."""
    honest, forked = tree_of(HONEST), tree_of(FORKED)
    view = LogView(profile(tmp_path))
    view.accept(view.open(SIGNER.sign(7, honest.root(7)).encode()))
    fork = view.open(SIGNER.sign(size, forked.root(size)).encode())
    proof = forked.consistency_proof(min(7, size), max(7, size))
    assert not believes(lambda: view.accept(fork, proof)), BELIEVED


def test_checkpoints_that_the_policys_witnesses_did_not_sign_are_not_believed(
    tmp_path: Path, witness: WitnessFolder
) -> None:
    view = LogView(profile(tmp_path, WitnessPolicy(1, (witness.key,))))
    note = SIGNER.sign(7, tree_of(HONEST).root(7)).encode()
    assert not believes(lambda: view.open(note)), BELIEVED


def test_a_backup_of_the_log_does_not_start(city: PreparedCity, tmp_path: Path) -> None:
    """Records and head as they were before the release; the state folder is the newest."""
    log, backup = city.config.published / "log", tmp_path / "backup"
    shutil.copytree(log, backup)
    with city.open() as keyholder:
        release(keyholder, city)
    for name in ("records", "head"):
        shutil.copy(backup / name, log / name)
    started = believes(lambda: KeyHolder(city.config, ManualClock(city.closes)).close())
    assert not started, STARTED


def test_the_head_is_not_signed_over_what_the_disk_lost(
    city: PreparedCity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes every write and keeps another byte."""
    original = os.pwrite

    def lying(descriptor: int, data: bytes, offset: int) -> int:
        return original(descriptor, bytes(data)[:-1] + bytes([data[-1] ^ 1]), offset)

    with city.open() as keyholder:
        before = keyholder.ledger.log.published
        monkeypatch.setattr(os, "pwrite", lying)
        believes(lambda: release(keyholder, city))
        monkeypatch.undo()
    note = (city.config.published / "log" / "checkpoint").read_bytes()
    assert open_checkpoint(note, city_key(city)).head.size == before, SIGNED


def test_a_copy_of_the_old_disk_does_not_start(witnessed: PreparedCity, tmp_path: Path) -> None:
    with witnessed.open() as keyholder:
        old_disk = witnessed.copy(tmp_path / "old disk")
        release(keyholder, witnessed)
    started = believes(lambda: KeyHolder(old_disk.config, ManualClock(old_disk.closes)).close())
    assert not started, STARTED


def test_of_two_claims_at_once_only_the_witnessed_one_is_opened(
    witnessed: PreparedCity, tmp_path: Path
) -> None:
    twin = witnessed.copy(tmp_path / "twin")
    with ExitStack() as closing:
        first = closing.enter_context(witnessed.open())
        second = closing.enter_context(twin.open(ManualClock(twin.closes + 1)))

        def overtaken(patience_s: float) -> None:
            second.witnesses.confirm(patience_s)
            if first.ledger.state(twin.window).status is Status.OPEN:
                release(first, witnessed)

        second.ledger.witness_claims(overtaken)
        believes(lambda: release(second, twin))
        assert second.ring.decryptions(twin.window) == 0, DECRYPTED
        assert first.ring.decryptions(twin.window) == 1


def test_nothing_is_shown_that_no_witness_has_seen(witnessed: PreparedCity) -> None:
    with witnessed.open() as keyholder:
        release(keyholder, witnessed)
        log = PublishedLog(witnessed.config.published / "log", city_key(witnessed))
        kinds = [found.record.WhichOneof("event") for found in log.advance()]
        assert "released" not in kinds, SHOWN


def test_no_witness_cosigns_two_logs(tmp_path: Path) -> None:
    """Not with the log's own key, not with the proof of either log, not after a restart."""
    honest, forked = tree_of(HONEST), tree_of(FORKED)
    folder = WitnessFolder.create(tmp_path / "witness", LOG_KEY)
    first = folder.witness()
    assert first.add_checkpoint(request(0, 7, honest)).status == 200
    attempts = [(7, 9, forked), (7, 7, forked), (0, 7, forked), (0, 9, forked)]
    answers = [first.add_checkpoint(request(*attempt)).status for attempt in attempts]
    first.close()
    later = folder.witness()
    answers += [later.add_checkpoint(request(*attempt)).status for attempt in attempts]
    later.close()
    assert 200 not in answers, COSIGNED


def request(old: int, size: int, tree: Tree) -> bytes:
    note = TreeHead(log_origin(CITY), size, tree.root(size)).sign(KEY)
    return AddCheckpoint(old, tuple(tree.consistency_proof(old, size)), note).encode()
