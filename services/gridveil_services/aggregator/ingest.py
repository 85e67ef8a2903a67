"""From reports as they arrive to answers: the path that every report takes.

Runs in the threads of the calls; libsodium and NumPy work beside the interpreter. What several
calls found acceptable meets in the committer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from gridveil.clock import Clock
from gridveil.protocol.ciphertext import Residues, parse_ciphertext
from gridveil.protocol.city import CityParameters
from gridveil.protocol.errors import Conflict, GridveilError, MalformedInput, Reason
from gridveil.protocol.layout import sha256
from gridveil.protocol.parameter_sets import ParameterSet
from gridveil.protocol.release import Entry
from gridveil.protocol.report import Report, parse_report
from gridveil.protocol.v1 import report_pb2
from gridveil.protocol.windows import lane_of
from gridveil.tracing.spans import Tracer, Untraced
from gridveil_services.aggregator import rules
from gridveil_services.aggregator.city import City
from gridveil_services.aggregator.committer import Committer
from gridveil_services.aggregator.observer import IngestObserver, Stage, Unobserved
from gridveil_services.aggregator.store.interface import (
    Committed,
    Known,
    LaneBatch,
    LaneFull,
    Moved,
    NotOpen,
    Outcome,
    Store,
    StoredReport,
    Window,
)
from gridveil_services.aggregator.summing import canonical_sum


class Accepted(NamedTuple):
    """A report is durable."""

    digest: bytes
    accepted_at_ms: int
    duplicate: bool
    """It was before."""


class _Authentic(NamedTuple):
    """A report whose meter is proven, and its place in the call."""

    place: int
    stored: StoredReport
    ciphertext: bytes


Answer = Accepted | GridveilError
Answers = dict[int, Answer]


class Ingest:
    """Decides on reports, and has the acceptable ones added and stored."""

    def __init__(
        self,
        city: City,
        store: Store,
        committer: Committer,
        clock: Clock,
        on_gap: Callable[[], None] = lambda: None,
        observer: IngestObserver | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """``on_gap`` is called when a report shows that parameters or a roster may be missing."""
        self._observer = observer or Unobserved()
        self._tracer = tracer or Untraced()
        self._city = city
        self._store = store
        self._committer = committer
        self._clock = clock
        self._on_gap = on_gap

    def submit(
        self, messages: Sequence[report_pb2.Report], *, one_window: bool = False
    ) -> list[Answer]:
        """The answers to reports, in order; given after they are durable.

        Args:
            messages: reports of any windows and epochs.
            one_window: refuse them all unless they are of one window and one epoch.

        Raises:
            MalformedInput: BATCH_MIXED.
            Exhausted: OVERLOADED, before any work.
            Unavailable: STORE_FULL or STORE_UNAVAILABLE; some of the reports may be stored.
        """
        try:
            with self._tracer.span("ingest", len(messages)):
                answers = self._submit(messages, one_window)
        except GridveilError as refusal:
            self._observer.refused(refusal.reason, len(messages))
            raise
        self._observer.answered(answers)
        return answers

    @contextmanager
    def _stage(self, stage: Stage) -> Iterator[None]:
        with self._observer.stage(stage), self._tracer.step(stage):
            yield

    def _submit(self, messages: Sequence[report_pb2.Report], one_window: bool) -> list[Answer]:
        answers: Answers = {}
        with self._committer.place(len(messages)):
            with self._stage(Stage.PARSE):
                scopes = _by_scope(messages, answers)
            if one_window and len(scopes) > 1:
                raise MalformedInput(Reason.BATCH_MIXED, "a batch is of one window and one epoch")
            for (parameters_digest, window_start), reports in scopes.items():
                self._answer_scope(parameters_digest, window_start, reports, answers)
        return [answers[place] for place in range(len(messages))]

    def _answer_scope(
        self,
        parameters_digest: bytes,
        window_start: int,
        reports: Sequence[tuple[int, Report]],
        answers: Answers,
    ) -> None:
        book, window = self._city.parameters, self._store.window(window_start)
        try:
            parameters = rules.parameters_of(book, parameters_digest, window_start)
            rules.check_whole(window)
            rules.check_roster_known(window, window_start, parameters, self._clock.now())
            version = self._roster_version(window)
        except GridveilError as refusal:
            self._on_gap()
            answers.update((place, refusal) for place, _ in reports)
            return
        with self._stage(Stage.VERIFY):
            left = self._authentic(reports, version, answers)
        while left:
            left = self._round(parameters, window_start, left, answers)

    def _roster_version(self, window: Window | None) -> int:
        """The version of the window; of a window that is not known, the newest."""
        if window is not None:
            return window.roster_version
        if self._city.roster.head is None:
            raise rules.keyholder_unknown()
        return self._city.roster.head.version

    def _authentic(
        self, reports: Sequence[tuple[int, Report]], version: int, answers: Answers
    ) -> list[_Authentic]:
        roster = self._city.roster
        proven = []
        for place, report in reports:
            claim, signature = report.claim, report.signature
            transcript = claim.transcript()
            membership = roster.find(claim.meter_id, version)
            try:
                rules.check_author(membership, version, transcript, signature)
            except GridveilError as refusal:
                answers[place] = refusal
                continue
            entry = Entry(claim, signature).encode()
            stored = StoredReport(claim.meter_id, sha256(transcript), entry)
            proven.append(_Authentic(place, stored, report.ciphertext))
        return proven

    def _round(
        self,
        parameters: CityParameters,
        window_start: int,
        reports: Sequence[_Authentic],
        answers: Answers,
    ) -> list[_Authentic]:
        """Answer what can be answered; what is returned must be looked at again.

        That is a further report of the same meter, or one beside which, in the same lane, another
        call stored first, or whose window has come under other parameters meanwhile.
        """
        with self._stage(Stage.KNOWN):
            fresh = self._answer_known(parameters, window_start, reports, answers)
        if not fresh:
            return []
        book, window = self._city.parameters, self._store.window(window_start)
        try:
            window = rules.check_window(book, window, window_start, parameters, self._clock.now())
        except GridveilError as refusal:
            self._on_gap()
            answers.update((report.place, refusal) for report in fresh)
            return []
        firsts, further = _first_of_each_meter(fresh)
        return self._add(parameters, window, firsts, answers) + further

    def _answer_known(
        self,
        parameters: CityParameters,
        window_start: int,
        reports: Sequence[_Authentic],
        answers: Answers,
    ) -> Sequence[_Authentic]:
        """Answer the reports whose meters have one stored already; the others are returned."""
        meters = [report.stored.meter_id for report in reports]
        known = self._store.known(window_start, meters, self._lanes(window_start))
        if not known:
            return reports
        fresh = []
        for report in reports:
            receipt = known.get(report.stored.meter_id)
            if receipt is None:
                fresh.append(report)
                continue
            try:
                rules.check_same(receipt, report.stored.digest)
                answers[report.place] = Accepted(*receipt, duplicate=True)
            except Conflict as refusal:
                self._record(parameters, window_start, report.stored)
                answers[report.place] = refusal
        return fresh

    def _lanes(self, window_start: int) -> Callable[[bytes], int] | None:
        """Lanes of the window's reports; None if it is not known what it was opened under."""
        window = self._store.window(window_start)
        if window is None:
            return None
        serving = self._city.parameters.named(window.parameters_digest)
        if serving is None:
            return None
        epoch_id, count = serving.parameters.epoch.epoch_id, window.lanes
        return lambda meter_id: lane_of(epoch_id, window_start, meter_id, count)

    def _record(self, parameters: CityParameters, window_start: int, second: StoredReport) -> None:
        lanes = self._lanes(window_start)
        if lanes is None:
            return
        lane = lanes(second.meter_id)
        self._committer.run(
            lambda: self._store.record_equivocation(
                window_start, lane, second.meter_id, parameters.digest, second.entry
            )
        )

    def _add(
        self,
        parameters: CityParameters,
        window: Window,
        reports: Sequence[_Authentic],
        answers: Answers,
    ) -> list[_Authentic]:
        """Have reports of distinct meters added; those to look at again are returned."""
        crypto, epoch_id = parameters.policy.crypto, parameters.epoch.epoch_id
        lanes: dict[int, list[_Authentic]] = {}
        for report in reports:
            lane = lane_of(epoch_id, window.start, report.stored.meter_id, window.lanes)
            lanes.setdefault(lane, []).append(report)
        batches, added = [], []
        with self._stage(Stage.SUM):
            for lane, members in lanes.items():
                canonical, total = _sum(members, crypto, window.slots, answers)
                if total is not None:
                    stored = [report.stored for report in canonical]
                    batches.append(LaneBatch(window.start, lane, stored, total, parameters.digest))
                    added.append(canonical)
        outcomes = self._commit(batches) if batches else []
        return [
            report
            for members, outcome in zip(added, outcomes, strict=True)
            for report in _answer_lane(members, outcome, answers)
        ]

    def _commit(self, batches: Sequence[LaneBatch]) -> Sequence[Outcome]:
        reports = sum(len(batch.reports) for batch in batches)
        with self._tracer.span("commit", reports):
            return self._committer.commit(batches)


def _by_scope(
    messages: Sequence[report_pb2.Report], answers: Answers
) -> dict[tuple[bytes, int], list[tuple[int, Report]]]:
    """Parse reports strictly, and put those together that name the same parameters and window."""
    scopes: dict[tuple[bytes, int], list[tuple[int, Report]]] = {}
    for place, message in enumerate(messages):
        try:
            report = parse_report(message)
        except GridveilError as refusal:
            answers[place] = refusal
            continue
        scope = report.claim.parameters_digest, report.claim.window_start
        scopes.setdefault(scope, []).append((place, report))
    return scopes


def _first_of_each_meter(
    reports: Sequence[_Authentic],
) -> tuple[list[_Authentic], list[_Authentic]]:
    firsts: dict[bytes, _Authentic] = {}
    further = [
        report
        for report in reports
        if firsts.setdefault(report.stored.meter_id, report) is not report
    ]
    return list(firsts.values()), further


def _sum(
    reports: Sequence[_Authentic], crypto: ParameterSet, slots: int, answers: Answers
) -> tuple[Sequence[_Authentic], Residues | None]:
    """The reports whose ciphertexts are canonical, and their sum; the others are answered."""
    total = canonical_sum([report.ciphertext for report in reports], crypto, slots)
    if total is not None:
        return reports, total
    canonical = []
    for report in reports:
        try:
            parse_ciphertext(report.ciphertext, crypto, slots)
            canonical.append(report)
        except MalformedInput as refusal:
            answers[report.place] = refusal
    return canonical, canonical_sum([r.ciphertext for r in canonical], crypto, slots)


def _answer_lane(
    reports: Sequence[_Authentic], outcome: Outcome, answers: Answers
) -> Sequence[_Authentic]:
    """Answer the reports of a lane batch; those to look at again are returned."""
    match outcome:
        case Committed(at):
            answers.update((r.place, Accepted(r.stored.digest, at, False)) for r in reports)
            return ()
        case Known() | Moved():
            return reports
        case LaneFull(room):
            answers.update((report.place, rules.lane_full()) for report in reports[room:])
            return reports[:room]
        case NotOpen(phase):
            answers.update((report.place, rules.not_open(phase)) for report in reports)
            return ()
