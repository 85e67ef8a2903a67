"""A household checks that its own report was counted, whoever may see who else reported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from gridveil.cli.app import app
from gridveil.household import Household, Standing
from gridveil.meter_identity import MeterKeys
from gridveil.operator import Operator, ReleasedTotal
from gridveil.profile import Profile
from gridveil.protocol.city import EntryAudience
from gridveil.protocol.errors import (
    GridveilError,
    IntegrityLost,
    MalformedInput,
    NotAllowed,
    NotAuthentic,
    NotFound,
    Reason,
    WrongState,
)
from gridveil.protocol.own_entry import OwnEntryKey
from gridveil.protocol.sealing import shared_key
from gridveil.protocol.v1 import totals_pb2
from gridveil.transport import from_rpc_error
from gridveil.verification import verify_own_entry
from gridveil_services.keyholder.publication import OWN_ENTRIES_KEPT_S
from tests.support.released import WINDOW, ReleasedCity, release_window
from tests.support.totals_clients import stub


@pytest.fixture(scope="module", params=list(EntryAudience), ids=lambda a: a.name.lower())
def city(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ReleasedCity:
    return release_window(tmp_path_factory.mktemp("city"), audience=request.param)


@pytest.fixture
def household(city: ReleasedCity) -> Iterator[Household]:
    with city.totals(), Household.open(city.paths.profile("meter")) as household:
        yield household


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> ReleasedCity:
    """A city of which nobody may see the entries."""
    return release_window(tmp_path_factory.mktemp("hidden"), audience=EntryAudience.NOBODY)


def own_key(city: ReleasedCity, meter: MeterKeys, window: int = WINDOW) -> OwnEntryKey:
    policy, epoch = city.parameters.policy, city.parameters.epoch
    key = shared_key(
        meter.sealing_secret, epoch.sealing_key, policy.city_id, epoch.epoch_id, meter.meter_id
    )
    return OwnEntryKey.derive(key, window)


def served(city: ReleasedCity, tag: bytes) -> totals_pb2.OwnEntry:
    request = totals_pb2.GetOwnEntryRequest(window_start=WINDOW, tag=tag)
    answer: totals_pb2.OwnEntry = stub(city.paths, "meter").GetOwnEntry(request)
    return answer


def test_every_meter_that_reported_finds_its_report_counted_once(
    city: ReleasedCity, household: Household
) -> None:
    found = [household.check(WINDOW, meter) for meter in city.meters]
    assert {own.standing for own in found} == {Standing.COUNTED}
    assert sorted(own.index or 0 for own in found) == list(range(len(city.meters)))
    digests = [report.claim.digest() for report in city.reports]
    assert [own.report_digest for own in found] == digests


def test_a_meter_that_did_not_report_is_told_so(city: ReleasedCity, household: Household) -> None:
    assert household.check(WINDOW, city.silent).standing is Standing.NOT_COUNTED
    assert household.check(WINDOW, MeterKeys.create()).standing is Standing.NOT_COUNTED


def test_meters_of_a_lane_left_out_are_told_so_and_all_others_are_counted(tmp_path: Path) -> None:
    city = release_window(tmp_path, meters=700, audience=EntryAudience.NOBODY, liar=True)
    with city.totals(), Household.open(city.paths.profile("meter")) as household:
        standings = {m.meter_id: household.check(WINDOW, m).standing for m in city.meters}
    left_out = {meter.meter_id for meter in city.left_out}
    assert len(left_out) > 1
    for meter_id, standing in standings.items():
        expected = Standing.LANE_LEFT_OUT if meter_id in left_out else Standing.COUNTED
        assert standing is expected


def test_who_may_fetch_the_entries_is_what_the_policy_says(city: ReleasedCity) -> None:
    audience = city.parameters.policy.entry_audience
    allowed = {
        EntryAudience.NOBODY: set(),
        EntryAudience.AUDITORS: {"auditor"},
        EntryAudience.PUBLIC: {"auditor", "operator", "meter", "gateway"},
    }[audience]
    with city.totals():
        for role in ("auditor", "operator", "meter", "gateway"):
            request = totals_pb2.GetEntriesRequest(window_start=WINDOW)
            try:
                chunks = list(stub(city.paths, role).GetEntries(request))
            except grpc.RpcError as error:
                refused = from_rpc_error(error)
                assert role not in allowed
                assert isinstance(refused, NotFound if role == "auditor" else NotAllowed)
            else:
                assert role in allowed
                assert sum(len(chunk.entries) for chunk in chunks) == 228 * len(city.meters)


def test_what_is_published_under_nobody_names_no_meter(hidden: ReleasedCity) -> None:
    """Nor anything else that the aggregator or a neighbour could recognise a report by."""
    published = b"".join(
        path.read_bytes() for path in hidden.paths.published.rglob("*") if path.is_file()
    )
    for meter, report in zip(hidden.meters, hidden.reports, strict=True):
        assert meter.meter_id not in published
        claim = report.claim
        for known in (claim.commitment_hash, claim.sealed_commitment, claim.ciphertext_digest):
            assert known not in published
        assert report.signature not in published


def test_a_tag_is_of_one_meter_and_window_and_is_not_guessed(hidden: ReleasedCity) -> None:
    meter, other = hidden.meters[:2]
    tags = {own_key(hidden, m, w).tag for m in (meter, other) for w in (WINDOW, WINDOW + 900)}
    assert len(tags) == 4
    with hidden.totals():
        for tag in (own_key(hidden, meter, WINDOW + 900).tag, bytes(16), b"\xff" * 16):
            assert served(hidden, tag) == totals_pb2.OwnEntry()


def test_another_meters_entry_does_not_open(hidden: ReleasedCity) -> None:
    meter, other = hidden.meters[:2]
    with hidden.totals():
        answer = served(hidden, own_key(hidden, other).tag)
    with pytest.raises(NotAuthentic) as refused:
        own_key(hidden, meter).open(answer.sealed_entry, answer.leaf_hash)
    assert refused.value.reason is Reason.SIGNATURE_INVALID


def test_no_byte_of_an_answer_can_be_changed(hidden: ReleasedCity) -> None:
    meter = hidden.meters[7]
    own = own_key(hidden, meter)
    with hidden.totals(), Operator.open(hidden.paths.profile("operator")) as operator:
        answer = served(hidden, own.tag)
        outcome = operator.get(WINDOW)
    assert isinstance(outcome, ReleasedTotal)

    def check(sealed: bytes, index: int, leaf: bytes, proof: list[bytes]) -> None:
        verify_own_entry(outcome.total, meter.member, own.open(sealed, leaf), index, proof)

    fields = [answer.sealed_entry, answer.leaf_hash[:24], *answer.proof]
    leaf_rest, index = answer.leaf_hash[24:], answer.index
    check(fields[0], index, answer.leaf_hash, list(answer.proof))
    for field, content in enumerate(fields):
        for at in range(len(content)):
            changed = list(fields)
            changed[field] = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
            sealed, leaf, *proof = changed
            with pytest.raises(NotAuthentic):
                check(sealed, index, leaf + leaf_rest, proof)
    for wrong in (index - 1, index + 1, 2**40):
        with pytest.raises(NotAuthentic):
            check(fields[0], wrong, answer.leaf_hash, list(answer.proof))
    for proof in ([], fields[2:-1], [*fields[2:], bytes(32)], [b"", *fields[3:]]):
        with pytest.raises(NotAuthentic):
            check(fields[0], index, answer.leaf_hash, proof)


def test_a_counted_report_of_another_meter_is_nobody_elses(hidden: ReleasedCity) -> None:
    """A key-holder that hands one household's entry to two is found out by the second."""
    meter, other = hidden.meters[:2]
    with hidden.totals(), Operator.open(hidden.paths.profile("operator")) as operator:
        answer = served(hidden, own_key(hidden, meter).tag)
        outcome = operator.get(WINDOW)
    assert isinstance(outcome, ReleasedTotal)
    opened = own_key(hidden, meter).open(answer.sealed_entry, answer.leaf_hash)
    proven = (opened, answer.index, answer.proof)
    with pytest.raises(MalformedInput):
        verify_own_entry(outcome.total, other.member, *proven)
    renamed = replace(other.member, meter_id=meter.meter_id)
    with pytest.raises(NotAuthentic):
        verify_own_entry(outcome.total, renamed, *proven)
    lanes = tuple(range(outcome.total.lanes))
    with pytest.raises(MalformedInput):
        verify_own_entry(replace(outcome.total, left_out=lanes), meter.member, *proven)


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        (b"", Reason.FIELD_REQUIRED),
        (bytes(15), Reason.FIELD_FORMAT),
        (bytes(17), Reason.FIELD_FORMAT),
    ],
)
def test_a_tag_of_another_length_is_refused(
    hidden: ReleasedCity, tag: bytes, reason: Reason
) -> None:
    with hidden.totals(), pytest.raises(grpc.RpcError) as raised:
        served(hidden, tag)
    assert from_rpc_error(raised.value).reason is reason


def test_a_window_without_a_total_has_no_entries(hidden: ReleasedCity) -> None:
    with (
        hidden.totals(),
        Household.open(hidden.paths.profile("meter")) as household,
        pytest.raises(WrongState) as refused,
    ):
        household.check(WINDOW + 900, hidden.meters[0])
    assert refused.value.reason is Reason.NOT_RELEASED


def test_damaged_own_entries_are_refused(hidden: ReleasedCity) -> None:
    path = hidden.paths.published / "own" / str(WINDOW)
    whole = path.read_bytes()
    for damaged in (whole[:-1], bytes([whole[0] ^ 1]) + whole[1:]):
        path.write_bytes(damaged)
        try:
            with hidden.totals():
                found = _refusal(hidden)
        finally:
            path.write_bytes(whole)
        assert isinstance(found, IntegrityLost)


def test_own_entries_go_after_a_week_and_parameters_stay(tmp_path: Path) -> None:
    city = release_window(tmp_path)
    own = city.paths.published / "own"
    with city.keyholder(WINDOW + OWN_ENTRIES_KEPT_S - 1) as keyholder:
        keyholder.releases.sweep()
        assert [path.name for path in own.iterdir()] == [str(WINDOW)]
    with city.keyholder(WINDOW + OWN_ENTRIES_KEPT_S) as keyholder:
        keyholder.releases.sweep()
        assert not list(own.iterdir())
    assert (city.paths.published / "parameters" / city.parameters.digest.hex()).exists()
    with city.totals():
        assert isinstance(_refusal(city), NotFound)


def test_the_command_says_what_became_of_reports(hidden: ReleasedCity, tmp_path: Path) -> None:
    profile = str(hidden.paths.profile("meter"))
    keys, silent = tmp_path / "meter.key", tmp_path / "silent.key"
    hidden.meters[3].save(keys)
    hidden.silent.save(silent)
    check = ["meters", "check", str(WINDOW), "--profile", profile]
    with hidden.totals():
        counted = CliRunner().invoke(app, [*check, "--keys", str(keys)])
        parsed = CliRunner().invoke(app, [*check, "--keys", str(keys), "--json"])
        missing = CliRunner().invoke(app, [*check, "--keys", str(silent)])
        fleet = CliRunner().invoke(app, [*check, "--fleet", str(hidden.paths.fleet)])
    assert counted.exit_code == parsed.exit_code == 0
    assert "1 report is counted" in counted.stdout
    (own,) = json.loads(parsed.stdout)
    assert own["standing"] == "COUNTED"
    assert own["report_digest"] == hidden.reports[3].claim.digest().hex()
    assert missing.exit_code == fleet.exit_code == 1
    assert "1 report is not counted" in missing.stdout
    assert f"{len(hidden.meters)} reports are counted" in fleet.stdout
    assert CliRunner().invoke(app, check).exit_code == 2


def _refusal(city: ReleasedCity) -> GridveilError:
    with (
        Household.open(Profile.load(city.paths.profile("meter"))) as household,
        pytest.raises(GridveilError) as refused,
    ):
        household.check(WINDOW, city.meters[0])
    return refused.value
