"""Corrupted meters and a gateway that alters what passes through it, against a running aggregator.

They hold transport certificates, their own keys, and every honest report they have seen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import apsw
import grpc
import pytest

from gridveil.protocol.errors import Reason
from gridveil.protocol.layout import sha256
from gridveil.protocol.release import Total
from gridveil.protocol.report import Report, parse_report
from gridveil.protocol.v1.aggregator_pb2 import SubmitReportsRequest
from gridveil.protocol.v1.report_pb2 import Receipt, ReportOutcome
from gridveil.protocol.v1.report_pb2 import Report as Message
from gridveil.transport import from_status
from gridveil_services.aggregator.serve import STORE_FILE
from gridveil_services.aggregator.store.interface import Phase
from gridveil_services.releaselog.reader import LogReader
from tests.adversary.forging import encrypted, forged_report, resigned, slots_of
from tests.support.aggregators import LENGTH, LocalCity
from tests.support.epochs import city_keys
from tests.support.reports import WINDOW, build_report, generators, make_members

HONEST = 110
"""Meters that have reported when the attack begins; the others are corrupted or silent."""
METERS = 121
CORRUPTED, SILENT = METERS - 2, METERS - 1
LEAVER = METERS
"""Withdrawn before the window; the last of the meters that have keys."""

TARGET = WINDOW + LENGTH
"""The window under attack; in the one before it the leaver was still enrolled."""


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCity]:
    with LocalCity.create(tmp_path_factory.mktemp("aggregator"), meters=METERS + 1) as made:
        enter_target(made)
        send(made, *(made.report(at, TARGET) for at in range(HONEST)))
        yield made


def enter_target(city: LocalCity) -> None:
    """Let the leaver leave under the aggregator's eyes, and the target's reports be taken."""
    city.clock.move_to(WINDOW + 20)
    city.aggregator.follower.step()
    city.keyholder.roster.withdraw([city.meters[LEAVER].meter_id])
    city.enter_window(TARGET)


def sums(city: LocalCity) -> list[tuple[object, ...]]:
    """What was added up so far, lane by lane, as it is stored."""
    path = city.aggregator_config.state / STORE_FILE
    reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return list(reader.execute("SELECT * FROM lanes ORDER BY window, lane"))
    finally:
        reader.close()


def send(city: LocalCity, *reports: Message) -> list[ReportOutcome]:
    """Hand reports in as a gateway; the outcome of each."""
    reply = city.stub("gateway").SubmitReports(SubmitReportsRequest(reports=reports))
    return list(reply.outcomes)


def reason(outcome: ReportOutcome) -> Reason:
    assert outcome.HasField("error"), "the report was accepted"
    return from_status(outcome.error).reason


def of(report: Report) -> Message:
    return report.to_message()


def altered(report: Message, **fields: bytes | int) -> Message:
    """A report with fields changed and its signature kept."""
    changed = Message()
    changed.CopyFrom(report)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


# Reports that the attacker makes, and what it is told.

Make = Callable[[LocalCity, Message], Message]
"""From a fresh honest report of the silent meter, which the attacker holds back."""


def under_anothers_name(city: LocalCity, seen: Message) -> Message:
    """The corrupted meter's own report with the silent meter's id."""
    own = parse_report(city.report(CORRUPTED, TARGET))
    return of(resigned(own, city.meters[CORRUPTED], meter_id=seen.meter_id))


def taken_over(city: LocalCity, seen: Message) -> Message:
    """The silent meter's report under the corrupted meter's id, with the genuine signature."""
    own = city.meters[CORRUPTED]
    stolen = parse_report(seen)
    made = resigned(stolen, own, meter_id=own.meter_id)
    return altered(of(made), signature=seen.signature)


def with_ciphertext_of(city: LocalCity, seen: Message) -> Message:
    """The silent meter's claim over a ciphertext of somebody else."""
    return altered(seen, ciphertext=city.report(CORRUPTED, TARGET).ciphertext)


def with_seal_of(city: LocalCity, seen: Message) -> Message:
    """The silent meter's report with another meter's seal."""
    return altered(seen, sealed_commitment=city.report(CORRUPTED, TARGET).sealed_commitment)


def with_hash_of(city: LocalCity, seen: Message) -> Message:
    """The silent meter's report with another meter's h."""
    return altered(seen, commitment_hash=city.report(CORRUPTED, TARGET).commitment_hash)


def with_a_bit_flipped(city: LocalCity, seen: Message) -> Message:
    """One bit of the ciphertext is another one."""
    ciphertext = bytearray(seen.ciphertext)
    ciphertext[8000] ^= 1
    return altered(seen, ciphertext=bytes(ciphertext))


def with_a_bit_of_the_signature_flipped(city: LocalCity, seen: Message) -> Message:
    """One bit of the signature is another one."""
    return altered(seen, signature=bytes([seen.signature[0] ^ 1]) + seen.signature[1:])


def of_another_window(city: LocalCity, seen: Message) -> Message:
    """A report of the window before, sent again for this one."""
    return altered(city.report(SILENT, TARGET - LENGTH), window_start=TARGET)


def of_another_epoch(city: LocalCity, seen: Message) -> Message:
    """The report goes under tomorrow's parameters."""
    later = city.parameters(TARGET + 86_400)
    made = build_report(later, city.meters[SILENT], TARGET, [1, 0])
    return of(made)


def under_keys_of_its_own(city: LocalCity, seen: Message) -> Message:
    """Parameters that the key-holder never signed."""
    own = city_keys(replace(city.parameters().policy), name=b"the attacker's  ").parameters
    return of(build_report(own, city.meters[CORRUPTED], TARGET, [1, 0]))


def of_a_stranger(city: LocalCity, seen: Message) -> Message:
    """A meter that was never enrolled, in all form."""
    (stranger,) = make_members(1, seed=5)
    return of(build_report(city.parameters(), stranger, TARGET, [1, 0]))


def of_a_leaver(city: LocalCity, seen: Message) -> Message:
    """A meter that was withdrawn before the window."""
    return of(build_report(city.parameters(), city.meters[LEAVER], TARGET, [1, 0]))


def of_a_later_window(city: LocalCity, seen: Message) -> Message:
    """A reading that cannot exist yet."""
    return city.report(CORRUPTED, TARGET + 2 * LENGTH)


def signed_by_itself(city: LocalCity, ciphertext: bytes) -> Message:
    """A corrupted meter's report of any ciphertext bytes, signed by it."""
    own = parse_report(city.report(CORRUPTED, TARGET))
    forged = own._replace(ciphertext=ciphertext)
    return of(resigned(forged, city.meters[CORRUPTED], ciphertext_digest=sha256(ciphertext)))


def with_a_residue_of_q(city: LocalCity, seen: Message) -> Message:
    """A residue that is not below the modulus: q counts as 0, and is another byte string."""
    q = city.parameters().policy.crypto.modulus
    return signed_by_itself(city, q.to_bytes(8, "little") + seen.ciphertext[8:])


def with_a_residue_of_2_to_64(city: LocalCity, seen: Message) -> Message:
    """The largest residue there is, to make sums overflow."""
    return signed_by_itself(city, seen.ciphertext[:-8] + b"\xff" * 8)


def without_c1(city: LocalCity, seen: Message) -> Message:
    """A ciphertext that everybody can read."""
    return signed_by_itself(city, seen.ciphertext[:1024] + bytes(16_384))


def cut_short(city: LocalCity, seen: Message) -> Message:
    """Less residues than the shape has."""
    return signed_by_itself(city, seen.ciphertext[:-8])


def too_long(city: LocalCity, seen: Message) -> Message:
    """More residues than the shape has, within what a message may be."""
    return signed_by_itself(city, seen.ciphertext * 100)


def not_whole_residues(city: LocalCity, seen: Message) -> Message:
    """A ciphertext that ends in the middle of a residue."""
    return signed_by_itself(city, seen.ciphertext[:-3])


ATTACKS: dict[Make, Reason] = {
    under_anothers_name: Reason.SIGNATURE_INVALID,
    taken_over: Reason.SIGNATURE_INVALID,
    with_ciphertext_of: Reason.SIGNATURE_INVALID,
    with_seal_of: Reason.SIGNATURE_INVALID,
    with_hash_of: Reason.SIGNATURE_INVALID,
    with_a_bit_flipped: Reason.SIGNATURE_INVALID,
    with_a_bit_of_the_signature_flipped: Reason.SIGNATURE_INVALID,
    of_another_window: Reason.SIGNATURE_INVALID,
    of_another_epoch: Reason.KEY_EPOCH,
    under_keys_of_its_own: Reason.KEY_EPOCH,
    of_a_stranger: Reason.SIGNATURE_INVALID,
    of_a_leaver: Reason.METER_REVOKED,
    of_a_later_window: Reason.WINDOW_TOO_EARLY,
    with_a_residue_of_q: Reason.CIPHERTEXT_NON_CANONICAL,
    with_a_residue_of_2_to_64: Reason.CIPHERTEXT_NON_CANONICAL,
    without_c1: Reason.CIPHERTEXT_TRANSPARENT,
    cut_short: Reason.CIPHERTEXT_PARAMS,
    too_long: Reason.CIPHERTEXT_PARAMS,
    not_whole_residues: Reason.CIPHERTEXT_MALFORMED,
}


@pytest.mark.parametrize("make", ATTACKS)
def test_a_forged_report_changes_nothing(city: LocalCity, make: Make) -> None:
    """The attacker gains nothing: its own clear reason, and not a row of the store is another."""
    forged = make(city, city.report(SILENT, TARGET))
    before = city.store_digest()
    (outcome,) = send(city, forged)
    assert reason(outcome) is ATTACKS[make]
    assert city.store_digest() == before


def test_who_is_enrolled_cannot_be_found_out(city: LocalCity) -> None:
    """A stranger's id, a meter's that has reported and one's that has not: the same answer."""
    genuine = city.report(CORRUPTED, TARGET)
    ids = [bytes(16), city.meters[0].meter_id, city.meters[SILENT].meter_id]
    ids.append(city.meters[LEAVER].meter_id)
    answers: set[bytes] = set()
    for meter_id in ids:
        (outcome,) = send(city, altered(genuine, meter_id=meter_id))
        answers.add(outcome.error.SerializeToString())
    assert len(answers) == 1


def test_a_second_report_of_a_meter_never_replaces_the_first(city: LocalCity) -> None:
    """Equivocation gains nothing: the sums stay, and the first receipt is still the answer."""
    before = sums(city)
    assert len(before) == 2
    for _ in range(3):
        (outcome,) = send(city, city.report(2, TARGET, values=(1, 0)))
        assert reason(outcome) is Reason.EQUIVOCATION
    assert sums(city) == before


def test_of_reports_of_one_meter_sent_at_once_one_counts(tmp_path: Path) -> None:
    """A race of a corrupted meter with itself gains nothing: it is counted once."""
    with LocalCity.create(tmp_path, meters=3) as city:
        city.enter_window(TARGET)
        rivals = [city.report(0, TARGET, values=(at, 0)) for at in range(8)]
        receipts: list[Receipt] = []
        refusals: list[str] = []
        start = threading.Barrier(len(rivals))

        def submit(report: Message) -> None:
            stub = city.stub("meter")
            start.wait()
            try:
                receipts.append(stub.SubmitReport(report))
            except grpc.RpcError as error:
                refusals.append(error.code().name)

        threads = [threading.Thread(target=submit, args=(report,)) for report in rivals]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(receipts) == 1
        assert set(refusals) == {"ALREADY_EXISTS"}
        city.clock.move_to(TARGET + LENGTH + 300)
        city.aggregator.sealer.step()
        (lane,) = city.aggregator.store.lane_sums(TARGET)
        assert lane.count == 1
        counted = next(
            r for r in rivals if parse_report(r).claim.digest() == receipts[0].report_digest
        )
        assert lane.ciphertext == counted.ciphertext


def test_forgeries_among_honest_reports_leave_the_released_total_exact(tmp_path: Path) -> None:
    """A gateway that mixes every forgery into every batch cannot bend the city's total."""
    with LocalCity.create(tmp_path, meters=METERS + 1) as city:
        enter_target(city)
        honest = [city.report(at, TARGET, values=(at, 1)) for at in range(METERS)]
        forged = [
            make(city, honest[SILENT])
            for make, why in ATTACKS.items()
            if why not in {Reason.KEY_EPOCH, Reason.WINDOW_TOO_EARLY}
        ]
        for half in (honest[:60], honest[60:]):
            outcomes = send(city, *forged[:9], *half, *forged[9:])
            accepted = [outcome.HasField("receipt") for outcome in outcomes]
            late = len(forged) - 9
            assert accepted == [False] * 9 + [True] * len(half) + [False] * late
        city.aggregator.sealer.step()
        city.aggregator.releaser.step()
        (record,) = [
            r for r in LogReader(city.paths.published / "log").poll() if r.HasField("released")
        ]
        total = Total.decode(record.released.total.total)
        assert total.count == METERS
        assert total.sum("import_wh") == sum(range(METERS))
        assert total.sum("export_wh") == METERS
        replayed = send(city, honest[0], city.report(1, TARGET))
        assert replayed[0].receipt.duplicate
        assert reason(replayed[1]) is Reason.EQUIVOCATION


def test_a_report_that_does_not_open_only_spends_its_window(tmp_path: Path) -> None:
    """What an aggregator cannot see gains a corrupted meter nothing but a window without total."""
    with LocalCity.create(tmp_path, meters=METERS) as city:
        city.enter_window(TARGET)
        honest = [city.report(at, TARGET) for at in range(METERS - 1)]
        parameters, corrupted = city.parameters(), city.meters[-1]
        commitment = generators(parameters, TARGET).commit([10, 0], 5)
        ciphertext = encrypted(parameters, slots_of(parameters, [11, 0], 5))
        forged = forged_report(parameters, corrupted, TARGET, commitment, ciphertext)
        outcomes = send(city, *honest, of(forged))
        assert all(outcome.HasField("receipt") for outcome in outcomes)
        city.aggregator.sealer.step()
        city.aggregator.releaser.step()
        assert city.stored_window(TARGET).phase is Phase.REFUSED
        log = LogReader(city.paths.published / "log").poll()
        assert [r.WhichOneof("event") for r in log][-2:] == ["intent", "refused"]
        assert not list((city.paths.published / "entries").iterdir())
