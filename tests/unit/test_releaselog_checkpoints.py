"""The log's checkpoint is signed after the re-read, covers what is there, shows what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from gridveil.protocol.checkpoint import Checkpoint, TreeHead, open_checkpoint
from gridveil.protocol.errors import IntegrityLost, Reason
from gridveil.protocol.merkle import leaf_hash, root, verify_consistency, verify_inclusion
from gridveil.protocol.v1.log_pb2 import LogRecord, WindowExpired
from gridveil_services.releaselog.framing import EMPTY, encode_frame
from gridveil_services.releaselog.published import PublishedLog
from gridveil_services.releaselog.signing import LogSigner
from gridveil_services.releaselog.writer import LogWriter

SIGNER = LogSigner(bytes(16), SigningKey(b"k" * 32))


def expired(window: int) -> LogRecord:
    return LogRecord(recorded_at_ms=window * 1000, expired=WindowExpired(window_start=window))


def payloads(*windows: int) -> list[bytes]:
    return [expired(window).SerializeToString() for window in windows]


def write(folder: Path, *windows: int, witnessed: bool = False) -> None:
    log = LogWriter(folder, SIGNER, witnessed=witnessed)
    for window in windows:
        log.append(expired(window))
    log.close()


def signed_head(folder: Path) -> TreeHead:
    return open_checkpoint((folder / "checkpoint").read_bytes(), SIGNER.key).head


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log of three records, closed."""
    write(tmp_path / "log", 900, 1800, 2700)
    return tmp_path / "log"


def start(folder: Path) -> Reason:
    with pytest.raises(IntegrityLost) as refused:
        LogWriter(folder, SIGNER)
    return refused.value.reason


def test_every_record_is_under_a_signed_checkpoint_before_anybody_is_told(tmp_path: Path) -> None:
    log = LogWriter(tmp_path / "log", SIGNER)
    assert signed_head(tmp_path / "log").size == 0
    for at, window in enumerate((900, 1800, 2700), start=1):
        log.append(expired(window))
        leaves = map(leaf_hash, payloads(900, 1800, 2700)[:at])
        assert signed_head(tmp_path / "log") == TreeHead(f"gridveil/{'00' * 16}", at, root(leaves))
    log.close()


def test_a_restored_backup_is_refused_and_called_one(folder: Path, tmp_path: Path) -> None:
    """Records and head are whole, but somebody was shown more."""
    backup = tmp_path / "backup"
    shutil.copytree(folder, backup)
    write(folder, 3600)
    for name in ("records", "head"):
        shutil.copy(backup / name, folder / name)
    assert start(folder) is Reason.LOG_ROLLED_BACK
    with pytest.raises(IntegrityLost) as refused:
        PublishedLog(folder, SIGNER.key).advance()
    assert refused.value.reason is Reason.LOG_ROLLED_BACK


def test_records_that_were_written_anew_are_refused(folder: Path) -> None:
    """The chain has no key: whoever can write the folder can make it fit, but not sign."""
    data, head = b"", EMPTY
    for payload in payloads(900, 1800, 3600):
        frame, head = encode_frame(head, payload)
        data += frame
    (folder / "records").write_bytes(data)
    (folder / "head").write_bytes(head.encode())
    assert start(folder) is Reason.LOG_CORRUPT
    with pytest.raises(IntegrityLost):
        PublishedLog(folder, SIGNER.key).advance()


def test_the_log_of_another_key_holder_is_refused(folder: Path) -> None:
    for other in (
        LogSigner(bytes(16), SigningKey(b"o" * 32)),
        LogSigner(bytes([1]) * 16, SigningKey(b"k" * 32)),
    ):
        with pytest.raises(IntegrityLost):
            LogWriter(folder, other)
        with pytest.raises(IntegrityLost):
            PublishedLog(folder, other.key).advance()


def test_a_crash_before_the_checkpoint_is_made_good_at_the_next_start(folder: Path) -> None:
    older = (folder / "checkpoint").read_bytes()
    write(folder, 3600)
    (folder / "checkpoint").write_bytes(older)
    write(folder)
    assert signed_head(folder).size == 4


def test_a_witnessed_log_publishes_only_what_it_is_told_to(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    log = LogWriter(folder, SIGNER, witnessed=True)
    published = PublishedLog(folder, SIGNER.key)
    log.append(expired(900))
    early = log.checkpoint()
    log.append(expired(1800))
    assert signed_head(folder).size == 0
    assert published.advance() == []
    log.publish(log.checkpoint())
    assert [found.index for found in published.advance()] == [0, 1]
    log.publish(early)
    assert signed_head(folder).size == log.published == 2
    log.close()
    write(folder, 2700, witnessed=True)
    assert signed_head(folder).size == 2


def test_the_published_log_proves_each_record_and_its_own_past(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    published = PublishedLog(folder, SIGNER.key)
    assert published.advance() == []
    seen: list[Checkpoint] = []
    for window in (900, 1800, 2700, 3600, 4500):
        write(folder, window)
        (found,) = published.advance()
        assert (found.index, found.record) == (len(seen), expired(window))
        assert published.checkpoint is not None
        seen.append(published.checkpoint)
        newest = published.checkpoint.head
        for index in range(newest.size):
            payload = published.payload(index)
            proof = published.inclusion_proof(index, published.checkpoint)
            verify_inclusion(leaf_hash(payload), index, newest.size, proof, newest.root)
        for old in (checkpoint.head for checkpoint in seen):
            joined = published.consistency_proof(old.size, newest.size)
            verify_consistency(old.size, old.root, newest.size, newest.root, joined)
    assert [published.payload(index) for index in (1, 2)] == payloads(1800, 2700)


def test_a_published_log_that_shrinks_is_noticed(folder: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    shutil.copytree(folder, backup)
    write(folder, 3600)
    published = PublishedLog(folder, SIGNER.key)
    published.advance()
    shutil.copy(backup / "checkpoint", folder / "checkpoint")
    with pytest.raises(IntegrityLost) as refused:
        published.advance()
    assert refused.value.reason is Reason.LOG_ROLLED_BACK


def test_a_record_that_rots_later_is_not_handed_out(folder: Path) -> None:
    published = PublishedLog(folder, SIGNER.key)
    published.advance()
    data = bytearray((folder / "records").read_bytes())
    data[-1] ^= 1
    (folder / "records").write_bytes(data)
    assert [published.payload(index) for index in (0, 1)] == payloads(900, 1800)
    with pytest.raises(IntegrityLost):
        published.payload(2)
