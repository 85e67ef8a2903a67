"""Forks, put back logs and changed records, against a real totals service and its readers."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gridveil.cli.app import app
from gridveil.operator import AsyncOperator, NotReleased, ReleasedTotal
from gridveil.protocol.checkpoint import log_key, open_checkpoint
from gridveil.protocol.errors import GridveilError, IntegrityLost, NotAllowed, Reason
from gridveil.protocol.merkle import leaf_hash, verify_inclusion
from gridveil.protocol.v1 import totals_pb2, transparency_pb2
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.totals.serve import TotalsProcess
from tests.support.log_records import lawful_log, policy_stated, unlocked
from tests.support.totals import city_identity, expired, publish
from tests.support.totals_clients import client, log_stub, refusal, window

Serve = Callable[[], TotalsProcess]


def publish_lawful(paths: CityPaths, at: int = 0) -> None:
    policy, signer = city_identity(paths)
    publish(paths, *lawful_log(policy, signer, window(at)))


def run(paths: CityPaths, role: str, *typed: str) -> Result:
    return CliRunner().invoke(app, [*typed, "--profile", str(paths.profile(role))])


def fork(paths: CityPaths, *windows: int) -> None:
    """The key-holder's own key signs another log."""
    shutil.rmtree(paths.published / "log")
    publish(paths, *(expired(window(at)) for at in windows))


def test_every_outcome_is_believed_because_the_log_says_so(paths: CityPaths, serve: Serve) -> None:
    publish_lawful(paths)
    serve()
    with client(paths) as operator:
        released = operator.get(window(0))
        assert isinstance(released, ReleasedTotal)
        assert isinstance(operator.get(window(1)), NotReleased)
        publish(paths, expired(window(3)))
        watch = operator.watch(window(0))
        assert [next(watch).window_start for _ in range(4)] == [window(at) for at in range(4)]
    remembered = paths.profile("operator").parent / "checkpoint"
    assert remembered.read_bytes() == (paths.published / "log" / "checkpoint").read_bytes()


@pytest.mark.parametrize("records", [8, 9, 10, 20])
def test_a_forked_log_is_refused_by_who_saw_the_other(
    paths: CityPaths, serve: Serve, records: int
) -> None:
    publish_lawful(paths)
    first = serve()
    with client(paths) as operator:
        operator.get(window(0))
    first.stop()
    fork(paths, *range(records))
    serve()
    expected = Reason.LOG_ROLLED_BACK if records < 9 else Reason.LOG_FORKED
    with client(paths) as operator:
        for ask in (
            lambda: operator.get(window(0)),
            lambda: list(operator.list()),
            lambda: next(operator.watch(window(0))),
        ):
            with pytest.raises(IntegrityLost) as refused:
                ask()
            assert refused.value.reason is expected

    async def ask_async() -> None:
        async with AsyncOperator.open(str(paths.profile("operator"))) as operator:
            await operator.get(window(0))

    with pytest.raises(IntegrityLost):
        asyncio.run(ask_async())
    shown = run(paths, "operator", "totals", "get", str(window(0)))
    assert (shown.exit_code, expected.value in shown.stderr) == (1, True)
    with client(paths, "auditor") as newcomer:  # who saw nothing before cannot know
        assert isinstance(newcomer.get(window(0)), NotReleased)


def test_a_watch_that_is_connected_anew_notices_the_fork(paths: CityPaths, serve: Serve) -> None:
    publish(paths, expired(window(0)), expired(window(1)))
    first = serve()
    with client(paths) as operator:
        watch = operator.watch(window(0))
        next(watch)
        first.stop()
        fork(paths, 0, 2)
        serve()
        with pytest.raises(IntegrityLost) as refused:
            list(watch)
        assert refused.value.reason is Reason.LOG_FORKED


def test_a_log_that_was_put_back_is_refused(paths: CityPaths, serve: Serve) -> None:
    publish(paths, expired(window(0)))
    log, backup = paths.published / "log", paths.published / "backup"
    shutil.copytree(log, backup)
    publish(paths, expired(window(1)))
    first = serve()
    with client(paths) as operator:
        operator.get(window(1))
    first.stop()
    shutil.rmtree(log)
    shutil.copytree(backup, log)
    serve()
    with client(paths) as operator, pytest.raises(IntegrityLost) as refused:
        operator.get(window(0))
    assert refused.value.reason is Reason.LOG_ROLLED_BACK


def test_the_whole_log_is_verified_from_the_service_and_from_its_folder(
    paths: CityPaths, serve: Serve
) -> None:
    publish_lawful(paths)
    serve()
    for where in ([], [str(paths.published / "log")]):
        ended = run(paths, "auditor", "log", "verify", *where, "--json")
        assert ended.exit_code == 0, ended.output
        found = json.loads(ended.stdout)
        assert found["size"] == 9
        assert found["records"]["intent"] == 2
    assert "every record may follow" in run(paths, "auditor", "log", "verify").stdout


def test_an_unlawful_log_is_refused_though_it_is_signed(paths: CityPaths, serve: Serve) -> None:
    publish_lawful(paths)
    policy, signer = city_identity(paths)
    publish(paths, lawful_log(policy, signer, window(10))[4])  # a total that nobody claimed
    serve()
    for where in ([], [str(paths.published / "log")]):
        ended = run(paths, "auditor", "log", "verify", *where)
        assert ended.exit_code == 1
        assert "LOG_CORRUPT: record 9 of the release log" in ended.stderr


def test_a_monitor_prints_what_is_new_and_ends_with_one_at_a_fork(
    paths: CityPaths, serve: Serve
) -> None:
    publish_lawful(paths)
    first = serve()
    options = ["log", "monitor", "--from", "0", "--interval", "0.05", "--json"]
    ended = run(paths, "auditor", *options, "--count", "9")
    assert ended.exit_code == 0, ended.output
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line["index"] for line in lines] == list(range(9))
    assert lines[4]["kind"] == "released"
    assert lines[4]["meters"] == 100
    first.stop()
    fork(paths, *range(12))
    serve()
    ended = run(paths, "auditor", *options)
    assert ended.exit_code == 1
    assert "LOG_FORKED" in ended.stderr
    assert (paths.profile("auditor").parent / "checkpoint.fork").exists()


def test_locks_and_who_ended_them_are_printed(paths: CityPaths, serve: Serve) -> None:
    policy, signer = city_identity(paths)
    _, *others = lawful_log(policy, signer, window(0))
    publish(paths, policy_stated(policy, 1), *others)
    verified = run(paths, "auditor", "log", "verify", str(paths.published / "log"))
    assert verified.exit_code == 0, verified.output
    assert "refusals locked the key-holder: record 6, 1970-01-01" in verified.stdout
    assert verified.stdout.endswith("; not unlocked\n")
    publish(paths, unlocked(6))
    serve()
    verified = run(paths, "auditor", "log", "verify", "--json")
    (lock,) = json.loads(verified.stdout)["locks"]
    assert (lock["record"], lock["unlocked_by"]) == (6, 9)
    options = ["log", "monitor", "--from", "0", "--interval", "0.05", "--count", "10"]
    followed = run(paths, "auditor", *options, "--json")
    lines = [json.loads(line) for line in followed.stdout.splitlines()]
    assert [line["index"] for line in lines if line.get("locks_keyholder")] == [6]
    assert lines[0]["refusals_per_day"] == 1
    assert (lines[9]["kind"], lines[9]["locked_at_index"]) == ("keyholder_unlocked", 6)
    shown = run(paths, "auditor", *options).stdout.splitlines()
    assert shown[6].endswith("failures 0, locks keyholder")
    assert shown[9].endswith("locked_at_index 6")


def test_a_monitor_without_a_service_gives_up_when_it_is_told_to(paths: CityPaths) -> None:
    ended = run(paths, "auditor", "log", "monitor", "--interval", "0.05", "--give-up-after", "0")
    assert ended.exit_code == 3


def test_meters_may_check_the_log_and_read_no_records(paths: CityPaths, serve: Serve) -> None:
    publish_lawful(paths)
    serve()
    stub = log_stub(paths, "meter")
    stub.GetCheckpoint(transparency_pb2.GetCheckpointRequest())
    error = refusal(lambda: stub.GetRecords(transparency_pb2.GetRecordsRequest()))
    assert isinstance(error, NotAllowed)


def test_proofs_are_refused_for_what_the_log_does_not_have(paths: CityPaths, serve: Serve) -> None:
    publish_lawful(paths)
    serve()
    stub = log_stub(paths, "operator")
    asked: list[tuple[Callable[[], object], Reason]] = [
        (
            lambda: stub.GetConsistencyProof(
                transparency_pb2.GetConsistencyProofRequest(old_size=3, size=10)
            ),
            Reason.RANGE_INVALID,
        ),
        (
            lambda: stub.GetConsistencyProof(
                transparency_pb2.GetConsistencyProofRequest(old_size=3, size=2)
            ),
            Reason.RANGE_INVALID,
        ),
        (
            lambda: stub.GetInclusionProof(
                transparency_pb2.GetInclusionProofRequest(window_start=window(7))
            ),
            Reason.NOT_RELEASED,
        ),
        (
            lambda: stub.GetInclusionProof(
                transparency_pb2.GetInclusionProofRequest(window_start=window(0) + 1)
            ),
            Reason.WINDOW_MISALIGNED,
        ),
        (
            lambda: stub.GetRecords(transparency_pb2.GetRecordsRequest(limit=1_001)),
            Reason.RANGE_INVALID,
        ),
    ]
    for ask, reason in asked:
        assert refusal(ask).reason is reason
    beyond = stub.GetRecords(transparency_pb2.GetRecordsRequest(first=2**63, limit=5))
    assert list(beyond.records) == []
    proof: totals_pb2.LogProof = stub.GetInclusionProof(
        transparency_pb2.GetInclusionProofRequest(window_start=window(0))
    )
    assert proof.index == 4


def test_a_total_is_proven_in_the_form_that_other_verifiers_read(
    paths: CityPaths, serve: Serve, tmp_path: Path
) -> None:
    """The proof is read here by the letter of C2SP tlog-proof."""
    publish_lawful(paths)
    serve()
    ended = run(paths, "operator", "log", "prove", str(window(0)), "--out", str(tmp_path))
    assert ended.exit_code == 0, ended.output
    record = (tmp_path / f"{window(0)}.record").read_bytes()
    proof = (tmp_path / f"{window(0)}.tlog-proof").read_text("utf-8")
    head, _, checkpoint = proof.partition("\n\n")
    version, index, *hashes = head.split("\n")
    assert (version, index) == ("c2sp.org/tlog-proof@v1", "index 4")
    policy, signer = city_identity(paths)
    key = log_key(policy.city_id, bytes(signer.verify_key))
    tree = open_checkpoint(checkpoint.encode(), key).head
    decoded = [base64.b64decode(value) for value in hashes]
    verify_inclusion(leaf_hash(record), 4, tree.size, decoded, tree.root)
    refused = run(paths, "operator", "log", "prove", str(window(1)), "--out", str(tmp_path))
    assert refused.exit_code == 1


def test_the_logs_key_is_printed_as_witnesses_want_it(paths: CityPaths) -> None:
    policy, signer = city_identity(paths)
    expected = log_key(policy.city_id, bytes(signer.verify_key)).encode()
    assert run(paths, "operator", "log", "key").stdout == expected + "\n"


def test_a_city_without_a_log_yet_has_nothing_to_verify(paths: CityPaths, serve: Serve) -> None:
    shutil.rmtree(paths.published / "log", ignore_errors=True)
    serve()
    with client(paths) as operator:
        assert list(operator.list()) == []
        with pytest.raises(GridveilError) as refused:
            operator.get(window(0))
        assert refused.value.reason is Reason.NOT_RELEASED
    assert run(paths, "auditor", "log", "verify").exit_code == 1
