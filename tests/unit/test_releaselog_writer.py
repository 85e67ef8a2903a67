"""The release log holds what was acknowledged, or refuses to start."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from gridveil.protocol.errors import GridveilError, IntegrityLost, Reason, Unavailable
from gridveil.protocol.v1.log_pb2 import LogRecord, WindowExpired
from gridveil_services.releaselog.framing import EMPTY, Head, encode_frame
from gridveil_services.releaselog.published import PublishedLog
from gridveil_services.releaselog.reader import LogReader
from gridveil_services.releaselog.signing import LogSigner
from gridveil_services.releaselog.writer import LogWriter

SIGNER = LogSigner(bytes(16), SigningKey(b"k" * 32))


def expired(window: int) -> LogRecord:
    return LogRecord(recorded_at_ms=window * 1000, expired=WindowExpired(window_start=window))


def windows_in(folder: Path) -> list[int]:
    found: list[int] = []
    LogWriter(folder, SIGNER, lambda record: found.append(record.expired.window_start)).close()
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log of three records, closed."""
    log = LogWriter(tmp_path / "log", SIGNER)
    log.append(expired(900))
    log.append(expired(1800), expired(2700))
    log.close()
    return tmp_path / "log"


def test_a_restart_replays_every_record_in_order(folder: Path) -> None:
    assert windows_in(folder) == [900, 1800, 2700]


def test_a_reader_sees_each_acknowledged_record_once(tmp_path: Path) -> None:
    reader = LogReader(tmp_path / "log")
    assert reader.poll() == []
    log = LogWriter(tmp_path / "log", SIGNER)
    assert reader.poll() == []
    log.append(expired(900), expired(1800))
    assert reader.poll() == [expired(900), expired(1800)]
    log.append(expired(2700))
    assert reader.poll() == [expired(2700)]
    assert reader.poll() == []
    log.close()


def test_a_second_writer_is_refused_while_the_first_lives(folder: Path) -> None:
    first = LogWriter(folder, SIGNER)
    with pytest.raises(Unavailable) as refusal:
        LogWriter(folder, SIGNER)
    assert refusal.value.reason is Reason.KEYHOLDER_UNAVAILABLE
    program = (
        "import sys, pathlib; from tests.unit.test_releaselog_writer import LogWriter, SIGNER; "
        "LogWriter(pathlib.Path(sys.argv[1]), SIGNER)"
    )
    other = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False
    )
    assert other.returncode != 0
    assert "another process holds the release log" in other.stderr
    first.close()
    assert windows_in(folder) == [900, 1800, 2700]


@pytest.mark.parametrize("name", ["records", "head", "checkpoint"])
def test_no_flipped_bit_changes_what_the_log_says(folder: Path, tmp_path: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for at in range(len(whole)):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        (copy / name).write_bytes(flipped)
        with pytest.raises(IntegrityLost) as refusal:
            LogWriter(copy, SIGNER)
        assert refusal.value.reason is Reason.LOG_CORRUPT
        with pytest.raises(IntegrityLost):
            PublishedLog(copy, SIGNER.key).advance()
        shutil.rmtree(copy)


def test_a_log_shorter_than_its_head_is_refused(folder: Path, tmp_path: Path) -> None:
    size = (folder / "records").stat().st_size
    for length in range(size):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        os.truncate(copy / "records", length)
        with pytest.raises(IntegrityLost):
            LogWriter(copy, SIGNER)
        shutil.rmtree(copy)


@pytest.mark.parametrize("name", ["records", "head", "checkpoint"])
def test_a_log_that_lost_a_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(IntegrityLost):
        LogWriter(folder, SIGNER)


def unacknowledged(folder: Path) -> tuple[bytes, Path]:
    """The log with a fourth record, its head put back; and the bytes of that record."""
    kept = {name: (folder / name).read_bytes() for name in ("head", "checkpoint")}
    before = (folder / "records").stat().st_size
    log = LogWriter(folder, SIGNER)
    log.append(expired(3600))
    log.close()
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    return (folder / "records").read_bytes()[before:], folder


def test_a_whole_record_past_the_head_is_kept_and_acknowledged(folder: Path) -> None:
    unacknowledged(folder)
    assert len(LogReader(folder).poll()) == 3
    assert windows_in(folder) == [900, 1800, 2700, 3600]
    assert len(LogReader(folder).poll()) == 4


def test_a_torn_record_past_the_head_is_cut(folder: Path, tmp_path: Path) -> None:
    size = (folder / "records").stat().st_size
    frame, _ = unacknowledged(folder)
    for length in range(1, len(frame)):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        os.truncate(copy / "records", size + length)
        assert windows_in(copy) == [900, 1800, 2700]
        assert (copy / "records").stat().st_size == size
        shutil.rmtree(copy)


def test_the_log_goes_on_after_a_torn_record(folder: Path) -> None:
    with (folder / "records").open("ab") as records:
        records.write(b"torn")
    log = LogWriter(folder, SIGNER)
    log.append(expired(3600))
    log.close()
    assert windows_in(folder) == [900, 1800, 2700, 3600]


def test_after_a_failed_write_nothing_is_appended_until_a_restart(folder: Path) -> None:
    log = LogWriter(folder, SIGNER)
    aside = folder.with_name("aside")
    folder.rename(aside)  # the head cannot be replaced any more
    with pytest.raises(Unavailable) as refusal:
        log.append(expired(3600))
    assert refusal.value.reason is Reason.KEYHOLDER_UNAVAILABLE
    aside.rename(folder)
    with pytest.raises(Unavailable):
        log.append(expired(4500))
    assert log.failed
    log.close()
    assert windows_in(folder) in ([900, 1800, 2700], [900, 1800, 2700, 3600])


def test_a_record_of_an_unknown_kind_is_refused(folder: Path) -> None:
    head = Head.load(folder / "head")
    frame, after = encode_frame(head, LogRecord(recorded_at_ms=1).SerializeToString())
    with (folder / "records").open("ab") as records:
        records.write(frame)
    (folder / "head").write_bytes(after.encode())
    with pytest.raises(IntegrityLost):
        LogWriter(folder, SIGNER)


def test_a_reader_notices_that_the_log_was_replaced_by_another(folder: Path) -> None:
    reader = LogReader(folder)
    reader.poll()
    shutil.rmtree(folder)
    other = LogWriter(folder, SIGNER)
    other.append(*(expired(window) for window in (900, 1800, 3600, 4500)))
    other.close()
    with pytest.raises(GridveilError) as refusal:
        reader.poll()
    assert refusal.value.reason is Reason.LOG_CORRUPT


def test_a_frame_is_length_chain_and_payload() -> None:
    frame, head = encode_frame(EMPTY, b"payload")
    assert frame == (7).to_bytes(4, "little") + head.chain + b"payload"
    assert head.size == len(frame)
