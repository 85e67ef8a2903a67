"""What was settled stays settled: only lawful steps are recorded, and replay gives the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from gridveil.clock import ManualClock
from gridveil.protocol.errors import Conflict, IntegrityLost, Reason, Unavailable
from gridveil.protocol.v1.log_pb2 import LogRecord, ReleaseIntent, WindowRefused
from gridveil_services.keyholder.ledger import Ledger
from gridveil_services.keyholder.policy import Status
from gridveil_services.releaselog.signing import LogSigner
from gridveil_services.releaselog.writer import LogWriter
from tests.support.log_records import bare_total

ONE, OTHER = bytes([1] * 32), bytes([2] * 32)
W = 900
SIGNER = LogSigner(bytes(16), SigningKey(b"k" * 32))


def open_ledger(folder: Path) -> Ledger:
    return Ledger(folder / "log", ManualClock(1000), SIGNER)


def total(window: int, digest: bytes) -> bytes:
    return bare_total(window, digest).encode()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = open_ledger(tmp_path)
    yield opened
    opened.close()


def claim(ledger: Ledger, window: int = W, digest: bytes = ONE) -> None:
    ledger.claim(window, digest, bytes(32), 1)


def released(ledger: Ledger, digest: bytes = ONE) -> None:
    ledger.released(W, total(W, digest), bytes(64))


Step = Callable[[Ledger], None]
STEPS: dict[str, Step] = {
    "claim": claim,
    "claim by another": lambda ledger: claim(ledger, digest=OTHER),
    "release": released,
    "release of another": lambda ledger: released(ledger, OTHER),
    "refusal": lambda ledger: ledger.refused(W, ONE),
    "refusal of another": lambda ledger: ledger.refused(W, OTHER),
}
LAWFUL = {
    (): {"claim", "claim by another"},
    ("claim",): {"release", "refusal"},
    ("claim", "release"): set(),
    ("claim", "refusal"): set(),
}


@pytest.mark.parametrize("before", LAWFUL)
@pytest.mark.parametrize("step", STEPS)
def test_only_lawful_steps_are_recorded(ledger: Ledger, before: tuple[str, ...], step: str) -> None:
    for earlier in before:
        STEPS[earlier](ledger)
    state = ledger.state(W)
    if step in LAWFUL[before]:
        STEPS[step](ledger)
        assert ledger.state(W) != state
        return
    with pytest.raises(Conflict):
        STEPS[step](ledger)
    assert ledger.state(W) == state
    assert not ledger.failed


def test_a_settled_window_never_expires(ledger: Ledger) -> None:
    claim(ledger)
    claim(ledger, 1800)
    ledger.refused(1800, ONE)
    ledger.expire([W, 1800, 2700])
    found = {window: ledger.state(window).status for window in (W, 1800, 2700)}
    assert found == {W: Status.PENDING, 1800: Status.REFUSED, 2700: Status.EXPIRED}


def test_an_expired_window_cannot_be_claimed(ledger: Ledger) -> None:
    ledger.expire([W])
    with pytest.raises(Conflict) as refusal:
        claim(ledger)
    assert refusal.value.reason is Reason.WINDOW_PINNED


def test_a_restart_knows_every_state(tmp_path: Path) -> None:
    first = open_ledger(tmp_path)
    claim(first)
    released(first)
    claim(first, 1800, OTHER)
    claim(first, 2700)
    first.refused(2700, ONE)
    first.expire([3600])
    states = [first.state(window) for window in range(900, 5400, 900)]
    first.close()
    second = open_ledger(tmp_path)
    assert [second.state(window) for window in range(900, 5400, 900)] == states
    assert second.pending() == {1800: OTHER}
    second.close()


@pytest.mark.parametrize(
    "records",
    [
        [LogRecord(refused=WindowRefused(window_start=W, release_digest=ONE))],
        [LogRecord(intent=ReleaseIntent(window_start=W, release_digest=ONE))] * 2,
        [LogRecord(intent=ReleaseIntent(window_start=W, release_digest=b"short"))],
    ],
    ids=["refusal without claim", "two claims", "claim by no digest"],
)
def test_a_log_that_contradicts_itself_is_refused(tmp_path: Path, records: list[LogRecord]) -> None:
    writer = LogWriter(tmp_path / "log", SIGNER)
    writer.append(*records)
    writer.close()
    with pytest.raises(IntegrityLost) as refusal:
        open_ledger(tmp_path)
    assert refusal.value.reason is Reason.LOG_CORRUPT


def test_what_could_not_be_written_did_not_happen(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    (tmp_path / "log").rename(tmp_path / "aside")
    with pytest.raises(Unavailable):
        claim(ledger)
    assert ledger.state(W).status is Status.OPEN
    (tmp_path / "aside").rename(tmp_path / "log")
    with pytest.raises(Unavailable):
        claim(ledger, 1800)
    assert ledger.failed
    ledger.close()
