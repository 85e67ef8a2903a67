"""A key-holder that dies anywhere in a release, again and again, gives one answer and no other.

`make crashes` dies 1,000 times; otherwise it is CRASHES. GRIDVEIL_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from gridveil.profile import Tls
from gridveil.protocol.errors import GridveilError, Reason
from gridveil.protocol.noise import Mechanism, Noise, NoisePolicy, Spent
from gridveil.protocol.release import ENTRY_BYTES, Total
from gridveil.protocol.report import Report, sign_report
from gridveil.protocol.v1.log_pb2 import LogRecord
from gridveil.verification import verify_total
from gridveil_services.aggregator.upstream import KeyHolderClient
from gridveil_services.releaselog.reader import LogReader
from gridveil_services.rpc import Role
from tests.support.failpoints import (
    LOSSES,
    POINTS,
    Killers,
    Order,
    decryptions,
    keep_config,
)
from tests.support.keyholders import PreparedCity, prepare_city
from tests.support.lanes import prepare_lanes
from tests.support.reports import BuiltRelease, build_release
from tests.support.rpc import Certificates

pytestmark = pytest.mark.long

CRASHES = int(os.environ.get("GRIDVEIL_CRASHES", "60"))
IN_A_ROW = 3
"""Crashes of one release, at the most, before it is let through."""
CHUNK = 50 * ENTRY_BYTES
"""So that the entries come in three messages."""
TURNED_AWAY = {Reason.KEYHOLDER_UNAVAILABLE, Reason.UNREACHABLE}
"""What an aggregator that asks again may be told meanwhile."""
REFUSALS = {Reason.REFUSED, Reason.BUDGET_EXHAUSTED}
"""What it is told in the end of a window that is refused."""


@dataclass(frozen=True)
class Outcome:
    """What a window ended with: bytes that must never differ."""

    kind: str
    signed: bytes
    """The signed total, or the record of the refusal without its time."""
    entries: bytes
    """What was published beside it."""


@dataclass(frozen=True)
class Scene:
    """A release, and all that its key-holder needs."""

    name: str
    kind: str
    """Of the record that settles the window."""
    city: PreparedCity
    release: BuiltRelease
    tls: Tls
    """The aggregator's."""
    config: str
    destroyed: int = 0
    """Epochs whose keys are gone in the end."""
    prechecked: int = 0
    """Bytes of entries that are handed over ahead."""
    noisy: bool = False
    """Whether its total has noise, which is another one in every trial."""

    def order(self, folder: Path) -> Order:
        city, digest = self.city, self.release.digest
        return Order(self.config, str(folder), float(city.closes), city.window, digest.hex())

    def outcomes(self, folder: Path) -> list[Outcome]:
        """What the log in a folder says the window ended with."""
        found = []
        for record in LogReader(folder / "published" / "log").poll():
            kind = record.WhichOneof("event")
            if kind not in ("released", "refused"):
                continue
            if getattr(record, kind).window_start != self.city.window:
                continue
            found.append(Outcome(str(kind), self._stated(record), self._published(folder)))
        return found

    def destructions(self, folder: Path) -> list[bytes]:
        """Epochs that the log calls destroyed."""
        records = LogReader(folder / "published" / "log").poll()
        return [r.epoch_destroyed.epoch_id for r in records if r.HasField("epoch_destroyed")]

    def intents(self, folder: Path) -> list[bytes]:
        """Releases that the window was claimed for."""
        records = LogReader(folder / "published" / "log").poll()
        window = self.city.window
        return [r.intent.release_digest for r in records if r.intent.window_start == window]

    def _stated(self, record: LogRecord) -> bytes:
        timeless = LogRecord()
        timeless.CopyFrom(record)
        timeless.ClearField("recorded_at_ms")
        return timeless.SerializeToString(deterministic=True)

    def _published(self, folder: Path) -> bytes:
        path = folder / "published" / "entries" / str(self.city.window)
        return path.read_bytes() if path.exists() else b""


@pytest.fixture(scope="module")
def seed() -> int:
    chosen = int(os.environ.get("GRIDVEIL_SEED", random.SystemRandom().randrange(2**32)))
    print(f"GRIDVEIL_SEED={chosen}")
    return chosen


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Scene]:
    """Releases that open, do not, or but for two lanes, which spends the epoch's budget.

    One is of entries that were checked ahead, most of them, and is to end like the same without.
    Two more open with noise, and are beyond what their day can afford.
    """
    folder = tmp_path_factory.mktemp("scenes")
    certificates = Certificates(folder / "certificates")
    server, client = certificates.tls(Role.KEYHOLDER), certificates.tls(Role.AGGREGATOR)

    def served(made: PreparedCity, name: str) -> tuple[PreparedCity, str]:
        config = replace(made.config, tls=server, listen="127.0.0.1:0")
        return replace(made, config=config), keep_config(config, folder / f"{name}.config")

    city, config = served(prepare_city(folder / "city"), "city")
    lanes = prepare_lanes(folder / "lanes", failure_budget=2)
    large, budgeted = served(lanes.city, "lanes")
    unsealed, failing = with_a_seal_that_does_not_open(city), lanes.release(0, failing=[3, 4])
    loss = Noise(Mechanism.LAPLACE, 500_000)
    noisy, laplace = served(
        prepare_city(folder / "noisy", noise=NoisePolicy(loss, 500_000)), "noisy"
    )
    poor, gaussian = served(
        prepare_city(folder / "poor", noise=NoisePolicy(replace(loss, loss_ppm=9), 9)), "poor"
    )
    spend_a_day(poor)
    return [
        Scene("whole", "released", city, city.release, client, config),
        Scene("prechecked", "released", city, city.release, client, config, prechecked=2 * CHUNK),
        Scene("unsealed", "refused", city, unsealed, client, config),
        Scene("spent", "released", large, failing, client, budgeted, destroyed=1),
        Scene("noisy", "released", noisy, noisy.release, client, laplace, noisy=True),
        Scene("unaffordable", "refused", poor, poor.release, client, gaussian),
    ]


def spend_a_day(city: PreparedCity) -> None:
    """Claim the window before for all that the day affords."""
    with city.open() as keyholder:
        window, noise = city.window - 900, city.config.policy.noise
        keyholder.ledger.claim(window, bytes(32), city.parameters.digest, 1, Spent().claim(noise))
        keyholder.ledger.refused(window, bytes(32))


def with_a_seal_that_does_not_open(city: PreparedCity) -> BuiltRelease:
    def spoilt(report: Report) -> Report:
        claim = report.claim._replace(sealed_commitment=bytes(48))
        return sign_report(claim, report.ciphertext, city.meters[7].signing_key)

    return build_release(
        city.parameters, city.roster_version, city.reports_with(spoilt(city.reports[7]))
    )


@pytest.fixture(scope="module")
def killers(scenes: Sequence[Scene], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killers]:
    with Killers(tmp_path_factory.mktemp("killers")) as running:
        yield running


def ask(scene: Scene, address: str) -> bool:
    """Hand the release over as an aggregator does; whether the window is settled by it now."""
    city = scene.city
    client = KeyHolderClient(address, city.config.city_id, city.identity_key, scene.tls)
    try:
        held = client.progress(city.window, scene.release.digest)
        if scene.prechecked and held is not None:
            header, entries = scene.release.header, scene.release.entries[: scene.prechecked]
            scope = header.window_start, header.parameters_digest, header.roster_version
            client.precheck(*scope, entries)
        messages = (
            iter([scene.release.header_message()])
            if held is None
            else scene.release.messages(held, CHUNK)
        )
        assert client.release(messages) == scene.release.digest
    except GridveilError as error:
        if error.reason in TURNED_AWAY:
            return False
        if scene.kind != "refused" or error.reason not in REFUSALS:
            raise
    finally:
        client.close()
    return True


class Trial:
    """One release through the deaths of its key-holder."""

    def __init__(self, scene: Scene, killers: Killers, folder: Path) -> None:
        self.scene = scene
        self.killers = killers
        self.folder = folder
        self.told = False
        """Somebody has heard that the window is settled."""
        self.seen: set[Outcome] = set()
        self.counts: dict[str, int] = {}
        scene.city.copy(folder)

    def live(self, point: str = "", nth: int = 0, loss: str = "kill", seed: int = 0) -> bool:
        """One life of the key-holder; whether it was killed."""
        order = replace(self.scene.order(self.folder), point=point, nth=nth, loss=loss, seed=seed)
        address = self.killers.start(order)
        settled = address is not None and ask(self.scene, address)
        killed, self.counts = self.killers.end()
        self.told = self.told or settled
        self.check()
        return killed

    def check(self) -> None:
        """What has been said stands, and nothing was said twice."""
        intents = self.scene.intents(self.folder)
        assert intents in ([], [self.scene.release.digest])
        outcomes = self.scene.outcomes(self.folder)
        assert len(outcomes) <= 1
        assert len(outcomes) == 1 or not self.told, "an answer was given and is not in the log"
        self.seen |= set(outcomes)
        assert len(self.seen) <= 1, "two answers for one window"
        assert len(self.scene.destructions(self.folder)) <= self.scene.destroyed

    def finish(self) -> Outcome:
        """A last life without faults, and one more: the answer stays."""
        for _ in range(2):
            assert not self.live()
            assert self.told
        found = decryptions(self.folder)
        assert all(each.claimed for each in found), "decrypted before the claim was durable"
        pinned = {each.noise for each in found}
        assert len(pinned) <= 1, "two noises for one window"
        assert all(pinned) == self.scene.noisy or not found, "decrypted before the noise was"
        (outcome,) = self.seen
        self._check_noise(outcome)
        state = self.folder / "state"
        assert list((state / "spool").iterdir()) == []
        destroyed = self.scene.destructions(self.folder)
        assert len(destroyed) == self.scene.destroyed
        assert not any((state / "epochs" / epoch.hex()).exists() for epoch in destroyed)
        return outcome

    def _check_noise(self, outcome: Outcome) -> None:
        """A noisy total verifies, to the bit, with the one noise that it was claimed with."""
        if self.scene.noisy:
            record = LogRecord.FromString(outcome.signed)
            total = Total.decode(record.released.total.total)
            found = verify_total(total, [outcome.entries], self.scene.city.parameters)
            assert found.noisy


@pytest.fixture(scope="module")
def undisturbed(
    scenes: Sequence[Scene], killers: Killers, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Outcome, dict[str, int]]]:
    """How each scene ends without faults, and how often each point comes in it."""
    found = {}
    for scene in scenes:
        trial = Trial(scene, killers, tmp_path_factory.mktemp("undisturbed") / "city")
        trial.live()
        counts = trial.counts
        outcome = trial.finish()
        assert outcome.kind == scene.kind
        found[scene.name] = outcome, counts
    assert found["prechecked"][0] == found["whole"][0]
    return found


def test_the_key_holder_passes_every_failpoint(
    undisturbed: dict[str, tuple[Outcome, dict[str, int]]],
) -> None:
    """So that none of them is one that nothing ever reaches."""
    passed = Counter[str]()
    for _, counts in undisturbed.values():
        passed.update(counts)
    assert len(POINTS) >= 13
    assert set(POINTS) <= set(passed)


def plan(
    undisturbed: dict[str, tuple[Outcome, dict[str, int]]], chance: random.Random
) -> Iterator[tuple[str, str, int, str]]:
    """Scene, point, which time, and what is lost: each point first, then every place, for ever."""
    places = [
        (name, point, nth, loss)
        for name, (_, counts) in undisturbed.items()
        for point in POINTS
        for nth in range(1, counts.get(point, 0) + 1)
        for loss in LOSSES
    ]
    for point in POINTS:
        there = [place for place in places if place[1] == point]
        scene = chance.choice(sorted({place[0] for place in there}))
        yield chance.choice([place for place in there if place[0] == scene])
    while True:
        yield from chance.sample(places, len(places))


def test_crashes_anywhere_in_a_release_leave_one_answer_to_the_byte(
    scenes: Sequence[Scene],
    killers: Killers,
    undisturbed: dict[str, tuple[Outcome, dict[str, int]]],
    tmp_path: Path,
    seed: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    chance = random.Random(seed)
    by_name = {scene.name: scene for scene in scenes}
    crashes = Counter[str]()
    for number, place in enumerate(plan(undisturbed, chance)):
        if crashes.total() >= CRASHES:
            break
        name, first = place[0], place[1:]
        outcome, counts = undisturbed[name]
        trial = Trial(by_name[name], killers, tmp_path / str(number))
        deaths = [first, *later(counts, chance)]
        print(number, name, deaths)
        for point, nth, loss in deaths:
            if not trial.live(point, nth, loss, chance.randrange(2**32)):
                break
            crashes[point] += 1
        found = trial.finish()
        if by_name[name].noisy:  # trials share no noise, and entries all the same
            found = replace(found, signed=outcome.signed)
        assert found == outcome, f"{name} after {deaths}, GRIDVEIL_SEED={seed}"
        report(capfd, crashes)
    assert crashes.total() >= CRASHES
    few = IN_A_ROW * len(POINTS) > CRASHES
    assert few or len(crashes) == len(POINTS)


def later(counts: dict[str, int], chance: random.Random) -> list[tuple[str, int, str]]:
    """Further deaths, if they come to that: at random in the lives that follow."""
    points = [point for point in POINTS if counts.get(point)]
    found = []
    for _ in range(chance.randrange(IN_A_ROW)):
        point = chance.choice(points)
        found.append((point, chance.randint(1, counts[point]), chance.choice(LOSSES)))
    return found


def report(capfd: pytest.CaptureFixture[str], crashes: Counter[str]) -> None:
    if CRASHES > 60:
        with capfd.disabled():
            print(f"\r{crashes.total()} of {CRASHES} crashes", end="", flush=True)
