"""Power cuts below a meter's outbox."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

from gridveil.outbox import Outbox
from gridveil.protocol.errors import GridveilError
from tests.support.outbox_model import CITY, Contents, Sender, contents
from tests.support.power import recording
from tests.torture.kinds.power_store import scratch
from tests.torture.tally import Kind, Tally

STEPS = 40
CUTS_A_LIFE = 100
FILE = "outbox.db"


def run(seed: int, budget: int, *, pragma: str | None = None) -> Tally:
    """Cut the power ``budget`` times; ``pragma`` breaks the outbox, to show that this is found."""
    chance, tally = Random(seed), Tally()
    held, tick = Contents(), 0
    with scratch() as folder:
        (folder / "live").mkdir()
        while tally.injected < budget:
            promises = [(0, held)]
            with recording(folder / "live") as disk, Outbox(folder / "live" / FILE, CITY) as box:
                if pragma is not None:
                    box._database.execute(pragma)
                promises.append((disk.events, held))
                sender = Sender(box, held, chance, tick)
                for _ in range(STEPS):
                    after = sender.step()
                    promises.append((disk.events, after))
            tick = sender.tick
            tally.counts["steps"] += STEPS
            tally.counts["syncs"] += disk.syncs
            found: Contents | None = None
            for _ in range(min(CUTS_A_LIFE, budget - tally.injected)):
                shutil.rmtree(folder / "image", ignore_errors=True)
                at = chance.randint(0, disk.events)
                disk.cut(at, folder / "image", chance)
                tally.injected += 1
                kept = max(n for n, (events, _) in enumerate(promises) if events <= at)
                found = find(folder / "image", [held for _, held in promises[kept : kept + 2]])
                if found is None:
                    tally.violations.append(f"seed {seed}, cut {tally.injected}: event {at}")
            if found is None or tally.violations:
                return tally
            held = found if len(found.parameters) < 30 else Contents()
            shutil.rmtree(folder / "live")
            if held is found:
                (folder / "image").rename(folder / "live")
            else:
                (folder / "live").mkdir()
    return tally


def find(folder: Path, promised: list[Contents]) -> Contents | None:
    """Open what a cut left; which of the contents is found there, if it is one of them."""
    try:
        with Outbox(folder / FILE, CITY) as outbox:
            found = contents(outbox)
    except (GridveilError, AssertionError):
        return None
    return found if found in promised else None


KIND = Kind(
    "power cuts, meter's outbox",
    "The power is cut at any write below SQLite, sectors torn; the outbox is opened again by the"
    " real code and must hold every entry, report and verdict that it had said was kept.",
    run,
    {"short": 500, "long": 5_000},
)
