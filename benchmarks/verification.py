"""Verifying a released window by others, beside the key-holder's own check of the same window.

One process, CPU time of all its threads, rounds interleaved:

    key-holder   entries in order, enrolled, signed; seals; sums of points; decryption and equation
    Verifier     gridveil.verification with the roster: what `gridveil totals verify` does
    stand-alone  docs/verify_total.py on the exported window

The key-holder's sealing keys are computed before (once an epoch, not once a window), and what it
writes is not counted: that makes its part smaller, and the goal harder.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nacl.signing import SigningKey

from benchmarks.fleet import Fleet, prebuilt
from benchmarks.local_city import WINDOW, local_epoch
from benchmarks.measure import Goal, Spread, interleaved, parser, ratios, report
from gridveil.export import encode_export
from gridveil.protocol.ciphertext import Residues, add, parse_ciphertext, to_bytes
from gridveil.protocol.merkle import Tree, leaf_hash
from gridveil.protocol.release import (
    CHUNK_BYTES,
    EntriesDigest,
    Entry,
    LaneSum,
    RegisterTotal,
    ReleaseHeader,
    Total,
    entries_root,
    release_digest,
)
from gridveil.protocol.report import parse_report
from gridveil.protocol.roster import Member, RosterVersion, roster_digest
from gridveil.protocol.v1 import aggregator_pb2
from gridveil.protocol.v1.log_pb2 import LogRecord, WindowReleased
from gridveil.protocol.v1.totals_pb2 import LogProof, SignedTotal
from gridveil.protocol.windows import lane_count, lane_of
from gridveil.registrar import Roster
from gridveil.settlements import ReleasedTotal
from gridveil.verification import verify_total
from gridveil_services.keyholder.cohort import THREADS, Cohort
from gridveil_services.keyholder.epoch_keys import EpochKeys
from gridveil_services.keyholder.membership import Membership
from gridveil_services.keyholder.opening import Allowance, Opening, open_release
from gridveil_services.keyholder.publication import opened_entries
from gridveil_services.keyholder.spool import SpooledRelease, SpoolFolder
from gridveil_services.releaselog.signing import LogSigner

MOST_TIMES = 1.3
REGISTERS = 2
SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "verify_total.py"


class KeyHolderPart:
    """A window's release and everything that its check needs."""

    def __init__(self, meters: int, folder: Path) -> None:
        self.keys = EpochKeys(*local_epoch(REGISTERS))
        self.members = Membership()
        self.roster: dict[bytes, Member] = {}
        self.pool = ThreadPoolExecutor(THREADS)
        fleet = Fleet(os.urandom(16))
        for number in range(meters):
            member = fleet.meter(number).member
            self.members.add(member, 1)
            self.roster[member.meter_id] = member
        self.release = self._collect(fleet, meters, SpoolFolder(folder))

    def _collect(self, fleet: Fleet, meters: int, spools: SpoolFolder) -> SpooledRelease:
        parameters = self.keys.parameters
        policy = parameters.policy
        lanes = lane_count(meters, policy.crypto, policy.layout.slots)
        sums, placed = dict[int, list[Residues]](), []
        for batch in prebuilt(fleet, parameters, WINDOW, meters):
            for message in aggregator_pb2.SubmitReportsRequest.FromString(batch).reports:
                made = parse_report(message)
                meter_id = made.claim.meter_id
                lane = lane_of(parameters.epoch.epoch_id, WINDOW, meter_id, lanes)
                parsed = parse_ciphertext(made.ciphertext, policy.crypto, policy.layout.slots)
                sums.setdefault(lane, []).append(parsed)
                placed.append((lane, meter_id, Entry(made.claim, made.signature).encode()))
        found = [
            LaneSum(lane, len(parsed), to_bytes(add(parsed, policy.crypto)))
            for lane, parsed in sorted(sums.items())
        ]
        entries = b"".join(entry for _, _, entry in sorted(placed))
        header = ReleaseHeader(policy.city_id, parameters.digest, WINDOW, 1, lanes, meters)
        running = EntriesDigest()
        running.update(entries)
        spool = spools.create(header, release_digest(header, found, running.digest()))
        spool.append(entries)
        return spool.complete(found)

    def check(self) -> Opening:
        """The key-holder's own check of the window."""
        cohort = Cohort(self.release.header, self.keys.parameters, self.members, self.pool)
        for chunk in self.release.chunks():
            cohort.accept(chunk, cohort.examine(chunk))
        cohort.check_complete(self.release.lanes)
        allowance = Allowance(5, all_or_nothing=False, is_cohort=lambda _count: True)
        opening = open_release(self.release, self.keys, self.members, allowance, self.pool).opening
        if opening is None or opening.left_out:
            raise RuntimeError("an honest window did not open")
        return opening


@dataclass(frozen=True)
class Others:
    """What verifiers get of the same window."""

    part: KeyHolderPart
    total: Total
    chunks: list[bytes]
    exported: bytes
    identity: SigningKey

    @classmethod
    def of(cls, part: KeyHolderPart) -> Others:
        """Sign and export what the key-holder's part opened."""
        opening, release, identity = part.check(), part.release, SigningKey.generate()
        entries = b"".join(opened_entries(release, opening.commitments))
        policy, epoch = part.keys.parameters.policy, part.keys.parameters.epoch
        total = Total(
            city_id=policy.city_id,
            epoch_id=epoch.epoch_id,
            parameters_digest=part.keys.parameters.digest,
            window_start=WINDOW,
            window_length=policy.window_length,
            roster_version=1,
            enrolled=opening.count,
            count=opening.count,
            lanes=release.header.lanes,
            left_out=(),
            release_digest=release.digest,
            entries_root=entries_root([entries]),
            registers=tuple(
                RegisterTotal(register.name, register.unit, found)
                for register, found in zip(policy.registers, opening.totals, strict=True)
            ),
            blinding=opening.blinding.to_bytes(32, "little"),
        )
        size = CHUNK_BYTES // 196 * 228
        chunks = [entries[at : at + size] for at in range(0, len(entries), size)]
        return cls(part, total, chunks, _export(part, total, entries, identity), identity)

    def verify(self) -> None:
        """With the package."""
        verify_total(self.total, self.chunks, self.part.keys.parameters, self.part.roster)

    def verify_alone(self, script: Any) -> None:
        """With the script."""
        script.verify(self.exported, self.identity.verify_key)


def _export(part: KeyHolderPart, total: Total, entries: bytes, identity: SigningKey) -> bytes:
    signed = SignedTotal(total=total.encode(), signature=total.sign(identity))
    record = LogRecord(
        recorded_at_ms=1, released=WindowReleased(window_start=WINDOW, total=signed)
    ).SerializeToString(deterministic=True)
    tree, signer = Tree([leaf_hash(record)]), LogSigner(total.city_id, identity)
    proof = LogProof(record=record, checkpoint=signer.sign(1, tree.root(1)).encode())
    members = tuple(sorted(part.roster.values()))
    head = RosterVersion(total.city_id, 1, WINDOW, len(members), roster_digest(members))
    roster = Roster(head, members, head.sign(identity))
    released = ReleasedTotal(total, signed.total, signed.signature)
    return encode_export(released, entries, proof, bytes(identity.verify_key), roster)


def cpu_seconds(act: Callable[[], object]) -> float:
    """CPU time of all threads of this process during one call."""
    before = time.process_time()
    act()
    return time.process_time() - before


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    made = parser(__doc__, rounds=5)
    made.add_argument(
        "--meters", type=int, default=20_000, help="reports of the window (default 20000)"
    )
    options = made.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="gridveil-verification-") as folder:
        part = KeyHolderPart(options.meters, Path(folder))
        others, script = Others.of(part), _script()
        variants: dict[str, Callable[[], object]] = {
            "key-holder": part.check,
            "Verifier": others.verify,
            "stand-alone": partial(others.verify_alone, script),
        }
        taken = interleaved(
            {name: partial(cpu_seconds, act) for name, act in variants.items()},
            options.rounds,
            "checking a window",
        )
    return _report(options, taken)


def _report(options: argparse.Namespace, taken: dict[str, list[float]]) -> int:
    lines = [f"a window of {options.meters:,} reports, CPU"]
    each = {name: Spread.of([s / options.meters * 1e6 for s in taken[name]]) for name in taken}
    lines += [f"{name:<14}{found.show(1)} us a report" for name, found in each.items()]
    quotients = {
        name: ratios(seconds, taken["key-holder"])
        for name, seconds in taken.items()
        if name != "key-holder"
    }
    goals = [
        Goal(f"{name} / key-holder", quotient.median, MOST_TIMES)
        for name, quotient in quotients.items()
    ]
    figures = {"us_a_report": each, "ratios": quotients}
    return report(options, "verification", lines, goals, figures)


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("verify_total", SCRIPT)
    if spec is None or spec.loader is None:
        raise RuntimeError("docs/verify_total.py is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
