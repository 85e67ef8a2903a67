"""A whole log is read by somebody who trusts nobody: only lawful records pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from gridveil.log_audit import Lock, LogAudit, payloads_in
from gridveil.protocol.checkpoint import TreeHead
from gridveil.protocol.errors import IntegrityLost, MalformedInput, Reason
from gridveil.protocol.merkle import leaf_hash, root
from gridveil.protocol.noise import Mechanism, Noise, NoisePolicy
from gridveil.protocol.v1.log_pb2 import LogRecord, NoiseMechanism, PolicyStated, ReleaseIntent
from gridveil_services.releaselog.signing import LogSigner
from gridveil_services.releaselog.writer import LogWriter
from tests.support.log_records import lawful_log, policy_stated, unlocked
from tests.support.reports import CITY_ID, WINDOW, city_policy
from tests.support.totals import expired, open_window, readings, released

KEY = SigningKey(b"k" * 32)
LOG = lawful_log(city_policy(), KEY, WINDOW)
STATED = policy_stated(city_policy(), refusals_per_day=1)
POLICY, ROSTER, CREATED, CLAIM, TOTAL, OTHER_CLAIM, REFUSAL, EXPIRY, DESTROYED = LOG


def audited(records: list[LogRecord]) -> LogAudit:
    audit = LogAudit(CITY_ID, bytes(KEY.verify_key))
    for record in records:
        audit.add(record.SerializeToString(deterministic=True))
    return audit


def test_a_lawful_log_passes_and_is_counted() -> None:
    audit = audited(LOG)
    assert audit.size == 9
    assert audit.kinds["intent"] == 2
    leaves = [leaf_hash(record.SerializeToString(deterministic=True)) for record in LOG]
    audit.check(TreeHead("gridveil", 9, root(leaves)))
    for head in (TreeHead("gridveil", 8, root(leaves)), TreeHead("gridveil", 9, root(leaves[:8]))):
        with pytest.raises(IntegrityLost):
            audit.check(head)


def changed(record: LogRecord, change: Callable[[LogRecord], object]) -> LogRecord:
    copy = LogRecord()
    copy.CopyFrom(record)
    change(copy)
    return copy


LAPLACE = ReleaseIntent(mechanism=NoiseMechanism.NOISE_MECHANISM_LAPLACE, loss_ppm=5)


def noise_stated(window_ppm: int, day_ppm: int) -> LogRecord:
    window = Noise(Mechanism.LAPLACE, window_ppm)
    return policy_stated(city_policy(noise=NoisePolicy(window, day_ppm)))


NOISY, OVER_BUDGET = (
    changed(CLAIM, lambda record: record.intent.MergeFrom(LAPLACE)),
    changed(OTHER_CLAIM, lambda record: setattr(record.intent, "mechanism", 2)),
)
BLAMED = changed(REFUSAL, lambda record: setattr(record.refused, "over_budget", True))


ALSO_NOISY = changed(OTHER_CLAIM, lambda record: record.intent.MergeFrom(LAPLACE))


def test_claims_are_held_against_the_budget_that_was_stated_last() -> None:
    assert audited([noise_stated(5, 10), CREATED, NOISY, ALSO_NOISY]).size == 4
    assert audited([noise_stated(1, 1), noise_stated(6, 10), CREATED, NOISY]).size == 4


def test_a_refusal_for_the_budget_is_lawful_after_a_claim_without_room() -> None:
    assert audited([CREATED, OVER_BUDGET, BLAMED]).kinds["refused"] == 1


def forged() -> LogRecord:
    opened = open_window(city_policy(), SigningKey(b"t" * 32), WINDOW, readings(100))
    return released(opened)


UNLAWFUL = {
    "a window claimed twice": [CREATED, CLAIM, CLAIM],
    "a window claimed again after its total": [CREATED, CLAIM, TOTAL, CLAIM],
    "a window that expires after its total": [CREATED, CLAIM, TOTAL, expired(WINDOW)],
    "a claim of an expired window": [CREATED, expired(WINDOW), CLAIM],
    "a total without a claim": [CREATED, TOTAL],
    "two totals": [CREATED, CLAIM, TOTAL, TOTAL],
    "a total after a refusal": [CREATED, OTHER_CLAIM, REFUSAL, REFUSAL],
    "a refusal of another release": [
        CREATED,
        OTHER_CLAIM,
        changed(REFUSAL, lambda record: setattr(record.refused, "release_digest", bytes(32))),
    ],
    "a total of another release": [
        CREATED,
        changed(CLAIM, lambda record: setattr(record.intent, "release_digest", bytes(32))),
        TOTAL,
    ],
    "a total that somebody else signed": [CREATED, CLAIM, forged()],
    "a total under another window": [
        CREATED,
        CLAIM,
        changed(TOTAL, lambda record: setattr(record.released, "window_start", WINDOW + 900)),
    ],
    "a claim for no release": [
        CREATED,
        changed(CLAIM, lambda record: setattr(record.intent, "release_digest", b"short")),
    ],
    "a claim without an epoch": [CLAIM],
    "a claim in a destroyed epoch": [CREATED, DESTROYED, CLAIM],
    "an epoch created twice": [CREATED, CREATED],
    "an epoch destroyed twice": [CREATED, DESTROYED, DESTROYED],
    "an epoch destroyed that never was": [DESTROYED],
    "a roster that goes back": [ROSTER, ROSTER],
    "a claim by a locked key-holder": [STATED, CREATED, OTHER_CLAIM, REFUSAL, CLAIM],
    "an unlocking of what is not locked": [STATED, CREATED, unlocked(1)],
    "an unlocking of another lock": [STATED, CREATED, OTHER_CLAIM, REFUSAL, unlocked(2)],
    "a second unlocking": [STATED, CREATED, OTHER_CLAIM, REFUSAL, unlocked(3), unlocked(3)],
    "an impossible budget": [policy_stated(city_policy(), 97)],
    "a total without the noise that was claimed": [CREATED, NOISY, TOTAL],
    "a total of a claim without room in the budget": [
        CREATED,
        changed(CLAIM, lambda record: setattr(record.intent, "mechanism", 1)),
        TOTAL,
    ],
    "a claim of a loss without noise": [
        CREATED,
        changed(CLAIM, lambda record: setattr(record.intent, "loss_ppm", 5)),
    ],
    "a refusal that blames the budget for nothing": [CREATED, OTHER_CLAIM, BLAMED],
    "a refusal that does not say it is for the budget": [CREATED, OVER_BUDGET, REFUSAL],
    "a claim that costs more than a window may": [noise_stated(4, 100), CREATED, NOISY],
    "claims that cost more than a day may": [noise_stated(5, 9), CREATED, NOISY, ALSO_NOISY],
    "a policy that is none": [LogRecord(policy_stated=PolicyStated(policy=b"none"))],
    "a budget of refusals that is taken back": [STATED, policy_stated(city_policy(), 0)],
    "a record of no kind": [LogRecord(recorded_at_ms=1)],
}


@pytest.mark.parametrize("case", UNLAWFUL)
def test_an_unlawful_record_is_named_by_its_place(case: str) -> None:
    *before, last = UNLAWFUL[case]
    audit = audited(before)
    with pytest.raises(IntegrityLost) as refusal:
        audit.add(last.SerializeToString(deterministic=True))
    assert refusal.value.reason is Reason.LOG_CORRUPT
    assert f"record {len(before)} " in refusal.value.message


def test_locks_and_unlockings_are_told_by_their_records() -> None:
    locked = [STATED, CREATED, OTHER_CLAIM, changed(REFUSAL, at(5_000))]
    assert audited(locked).locks == {3: Lock(3, 5_000)}
    audit = audited([*locked, expired(WINDOW + 9000), unlocked(3), CLAIM, TOTAL])
    assert audit.locks == {3: Lock(3, 5_000, unlocked_by=5)}
    assert audited(LOG).locks == {}, "a log that states no budget never locks"


def at(milliseconds: int) -> Callable[[LogRecord], object]:
    return lambda record: setattr(record, "recorded_at_ms", milliseconds)


def test_bytes_that_are_no_record_are_refused() -> None:
    with pytest.raises(IntegrityLost):
        audited([]).add(b"\xff")


def test_a_folder_is_read_without_the_services(tmp_path: Path) -> None:
    log = LogWriter(tmp_path / "log", LogSigner(CITY_ID, KEY))
    log.append(*LOG)
    log.close()
    found = [LogRecord.FromString(payload) for payload in payloads_in(tmp_path / "log")]
    assert found == LOG
    whole = (tmp_path / "log" / "records").read_bytes()
    for cut in (1, 40, len(whole) - 10):
        (tmp_path / "log" / "records").write_bytes(whole[:-cut])
        with pytest.raises(IntegrityLost):
            list(payloads_in(tmp_path / "log"))
    with pytest.raises(MalformedInput):
        list(payloads_in(tmp_path))
