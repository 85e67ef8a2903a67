"""The privacy loss of a claim is spent for ever, and found again in the log and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from gridveil.clock import ManualClock
from gridveil.protocol.commitment import Generators
from gridveil.protocol.errors import GridveilError, IntegrityLost, Reason
from gridveil.protocol.noise import Mechanism, Noise, NoiseClaim, NoisePolicy, Spent
from gridveil.protocol.release import TotalNoise
from gridveil.protocol.v1.log_pb2 import LogRecord, ReleaseIntent, WindowRefused
from gridveil_services.keyholder.ledger import Ledger
from gridveil_services.keyholder.policy import Status
from gridveil_services.releaselog.signing import LogSigner
from gridveil_services.releaselog.writer import LogWriter
from tests.support.log_records import bare_total

DIGEST = bytes([1] * 32)
MIDNIGHT = 20_000 * 86_400
SIGNER = LogSigner(bytes(16), SigningKey(b"k" * 32))
LAPLACE = NoiseClaim(Mechanism.LAPLACE, 400_000)
OVER_BUDGET = NoiseClaim(Mechanism.LAPLACE, 0)
POLICY = NoisePolicy(Noise(Mechanism.LAPLACE, 400_000), 1_000_000)
POINT = Generators.derive(bytes(16), bytes(16), 900, ["a"]).blinding


def open_ledger(folder: Path) -> Ledger:
    return Ledger(folder / "log", ManualClock(1000), SIGNER)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = open_ledger(tmp_path)
    yield opened
    opened.close()


def claim(ledger: Ledger, window: int, noise: NoiseClaim = LAPLACE) -> None:
    ledger.claim(window, DIGEST, bytes(32), 1, noise)


def released(ledger: Ledger, window: int, noise: Noise | None) -> None:
    added = TotalNoise(noise, POINT) if noise else None
    total = bare_total(window, DIGEST, added)
    ledger.released(window, total.encode(), bytes(64))


def test_claims_of_a_day_add_up_whatever_becomes_of_them(ledger: Ledger) -> None:
    for at, window in enumerate(range(MIDNIGHT, MIDNIGHT + 2700, 900)):
        claim(ledger, window)
        assert ledger.spent_on_day_of(MIDNIGHT).laplace_ppm == 400_000 * (at + 1)
    released(ledger, MIDNIGHT, Noise(Mechanism.LAPLACE, 400_000))
    ledger.refused(MIDNIGHT + 900, DIGEST)
    assert ledger.spent_on_day_of(MIDNIGHT + 86_399).laplace_ppm == 1_200_000
    assert ledger.state(MIDNIGHT + 1800).status is Status.PENDING


def test_every_day_has_a_budget_of_its_own(ledger: Ledger) -> None:
    claim(ledger, MIDNIGHT - 900)
    claim(ledger, MIDNIGHT)
    assert ledger.spent_on_day_of(MIDNIGHT - 1).laplace_ppm == 400_000
    assert ledger.spent_on_day_of(MIDNIGHT).laplace_ppm == 400_000
    assert ledger.spent_on_day_of(MIDNIGHT + 86_400) == Spent()


def test_a_restart_finds_what_was_spent_in_the_log(tmp_path: Path) -> None:
    first = open_ledger(tmp_path)
    for at in range(2):
        claim(first, MIDNIGHT + 900 * at)
    claim(first, MIDNIGHT + 1800, NoiseClaim(Mechanism.GAUSSIAN, 7))
    spent = first.spent_on_day_of(MIDNIGHT)
    first.refused(MIDNIGHT, DIGEST)
    first.close()
    second = open_ledger(tmp_path)
    assert second.spent_on_day_of(MIDNIGHT) == spent
    assert spent == Spent(800_000, 2 * 400_000**2, 7)
    assert second.claimed_noise(MIDNIGHT + 900) == LAPLACE
    second.close()


def test_a_claim_beyond_the_budget_ends_as_what_it_is(ledger: Ledger) -> None:
    for at in range(2):
        claim(ledger, MIDNIGHT + 900 * at, ledger.spent_on_day_of(MIDNIGHT).claim(POLICY))
    third = ledger.spent_on_day_of(MIDNIGHT).claim(POLICY)
    assert third == OVER_BUDGET
    claim(ledger, MIDNIGHT + 1800, third)
    ledger.refused(MIDNIGHT + 1800, DIGEST)
    assert ledger.state(MIDNIGHT + 1800).status is Status.OVER_BUDGET
    assert ledger.spent_on_day_of(MIDNIGHT).laplace_ppm == 800_000
    ledger.refused(MIDNIGHT, DIGEST)
    assert ledger.state(MIDNIGHT).status is Status.REFUSED


@pytest.mark.parametrize(
    ("claimed", "noise"),
    [
        (LAPLACE, None),
        (LAPLACE, Noise(Mechanism.LAPLACE, 400_001)),
        (LAPLACE, Noise(Mechanism.LAPLACE, 399_999)),
        (LAPLACE, Noise(Mechanism.GAUSSIAN, 400_000)),
        (NoiseClaim(), Noise(Mechanism.LAPLACE, 400_000)),
        (OVER_BUDGET, Noise(Mechanism.LAPLACE, 400_000)),
        (OVER_BUDGET, None),
    ],
)
def test_a_total_has_the_noise_that_was_claimed_or_is_not_recorded(
    ledger: Ledger, claimed: NoiseClaim, noise: Noise | None
) -> None:
    claim(ledger, MIDNIGHT, claimed)
    with pytest.raises(GridveilError) as refused:
        released(ledger, MIDNIGHT, noise)
    assert refused.value.reason is Reason.WINDOW_PINNED
    assert ledger.state(MIDNIGHT).status is Status.PENDING


def intent(mechanism: int, loss_ppm: int) -> ReleaseIntent:
    """A claim with any numbers; read from bytes, as names of the enumeration end at 2."""
    made = ReleaseIntent(window_start=MIDNIGHT, release_digest=DIGEST, loss_ppm=loss_ppm)
    return ReleaseIntent.FromString(made.SerializeToString() + bytes([5 << 3, mechanism]))


CONTRADICTIONS: dict[str, Callable[[], list[LogRecord]]] = {
    "an unknown mechanism": lambda: [LogRecord(intent=intent(3, 1))],
    "a loss without a mechanism": lambda: [LogRecord(intent=intent(0, 1))],
    "a refusal that blames the budget": lambda: [
        LogRecord(intent=intent(1, 1)),
        LogRecord(
            refused=WindowRefused(window_start=MIDNIGHT, release_digest=DIGEST, over_budget=True)
        ),
    ],
    "a refusal that does not": lambda: [
        LogRecord(intent=intent(1, 0)),
        LogRecord(refused=WindowRefused(window_start=MIDNIGHT, release_digest=DIGEST)),
    ],
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_log_that_contradicts_itself_about_noise_is_refused(name: str, tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "log", SIGNER)
    writer.append(*CONTRADICTIONS[name]())
    writer.close()
    with pytest.raises(IntegrityLost) as refused:
        open_ledger(tmp_path)
    assert refused.value.reason is Reason.LOG_CORRUPT
