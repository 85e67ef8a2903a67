"""Power cuts below the aggregator's SQLite store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from gridveil.protocol.errors import GridveilError
from tests.support.power import Disk, recording
from tests.support.store_model import Opened, Worker, World
from tests.torture.tally import Kind, Tally

STEPS = 40
CUTS_A_LIFE = 100


@dataclass(frozen=True)
class Life:
    """A store at work from one start to its end, and what it was to hold at any moment."""

    disk: Disk
    worlds: list[tuple[int, World]]
    """After so many events the store had promised to hold this."""
    tick: int

    def promised(self, at: int) -> list[World]:
        """What may be found after a cut: the last promise, or what was in progress."""
        kept = max(n for n, (events, _) in enumerate(self.worlds) if events <= at)
        return [world for _, world in self.worlds[kept : kept + 2]]


def live(
    folder: Path,
    world: World,
    chance: Random,
    *,
    tick: int = 0,
    pragma: str | None = None,
    lies_about: str | None = None,
) -> Life:
    """Work on the store in a folder for some steps.

    ``pragma`` and ``lies_about`` break it, to show that this is found.
    """
    with recording(folder, lies_about=lies_about) as disk:
        opened = Opened(folder)
        if pragma is not None:
            opened.database._writer.execute(pragma)
        worlds = [(0, world), (disk.events, world)]
        worker = Worker(opened, world, chance, tick)
        for _ in range(STEPS):
            after = worker.step()
            worlds.append((disk.events, after))
        opened.close()
    return Life(disk, worlds, worker.tick)


def find(folder: Path, promised: list[World]) -> World | None:
    """Open what a cut left; which of the worlds is found there, if it is one of them."""
    try:
        opened = Opened(folder)
    except GridveilError:
        return None
    try:
        found = opened.seen()
    except (GridveilError, AssertionError):
        return None
    finally:
        opened.close()
    return next((world for world in promised if world.expected() == found), None)


def run(
    seed: int, budget: int, *, pragma: str | None = None, lies_about: str | None = None
) -> Tally:
    """Cut the power ``budget`` times, a hundred times in each life of a store."""
    chance, tally = Random(seed), Tally()
    world, tick = World(), 0
    with scratch() as folder:
        (folder / "live").mkdir()
        while tally.injected < budget:
            life = live(
                folder / "live", world, chance, tick=tick, pragma=pragma, lies_about=lies_about
            )
            tick = life.tick
            tally.counts["steps"] += STEPS
            tally.counts["syncs"] += life.disk.syncs
            for _ in range(min(CUTS_A_LIFE, budget - tally.injected)):
                shutil.rmtree(folder / "image", ignore_errors=True)
                at = chance.randint(0, life.disk.events)
                life.disk.cut(at, folder / "image", chance)
                tally.injected += 1
                found = find(folder / "image", life.promised(at))
                if found is None:
                    tally.violations.append(f"seed {seed}, cut {tally.injected}: event {at}")
            if found is None or tally.violations:
                return tally
            # The store goes on from where the last cut left it; now and then from nothing.
            world = found if len(world.parameters) < 30 else World()
            shutil.rmtree(folder / "live")
            if world is found:
                (folder / "image").rename(folder / "live")
            else:
                (folder / "live").mkdir()
    return tally


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory, where the machine has one: no real sync is wanted here."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


KIND = Kind(
    "power cuts, aggregator's store",
    "The power is cut at any write below SQLite, sectors torn; the store is opened again by the"
    " real code and must hold every acknowledged step, whole, and at most the one in progress.",
    run,
    {"short": 1_000, "long": 10_000},
)
