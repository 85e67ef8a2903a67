"""What goes wrong, and when: drawn from the seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.simulation.cluster.memory_redis import Data, Master, copied
from tests.simulation.cluster.network import CALL_FAULTS

if TYPE_CHECKING:
    from tests.simulation.cluster.process import Process
    from tests.simulation.cluster.world import World

SKEWS_S = (-600.0, -30.0, -2.0, 0.0, 2.0, 30.0, 600.0)


@dataclass
class Faults:
    """The schedule, as long as it is on."""

    world: World
    on: bool = True
    kept: dict[str, Data] | None = None
    """Data of each master as it once was."""

    def begin(self) -> None:
        """Let the first fault come."""
        mean = self.world.profile.between_faults
        if mean:
            self.world.scheduler.at(
                self.world.now + self.world.source.expovariate(1 / mean), self._strike
            )

    def end(self) -> None:
        """Everything is well from now on."""
        self.on = False
        for master in self.world.network.masters:
            self._heal(master)
            master.catch_up()
        self.world.network.cut.clear()
        self.world.keyholder.up = True
        for process in self.world.processes:
            process.clock.skew = 0.0

    def of_call(self) -> str | None:
        """What happens to a call."""
        source = self.world.source
        if not self.on or source.random() >= self.world.profile.call_faults:
            return None
        return source.choice(CALL_FAULTS)

    def inject(self, kind: str) -> None:
        """One fault of a kind."""
        world, source = self.world, self.world.source
        process: Process = source.choice(world.processes)
        master: Master = source.choice(world.network.masters)
        lasts = source.choice([5.0, 60.0, 900.0]) * source.random()
        heal = lambda: self._heal(master)  # noqa: E731 - handed on
        match kind:
            case "process crashed":
                process.crash()
            case "process paused":
                process.pause(lasts)
            case "clock skewed":
                process.clock.skew = source.choice(SKEWS_S)
                world.scheduler.at(world.now + 4 * lasts, lambda: self._set_right(process))
            case "cut from Redis":
                self._cut(process, master.name, lasts)
            case "cut from the key-holder":
                self._cut(process, "keyholder", lasts)
            case "cut from clients":
                self._cut(process, "clients", lasts)
            case "key-holder away":
                world.keyholder.up = False
                world.scheduler.at(world.now + lasts, self._keyholder_returns)
            case "master restarted":
                master.up = False
                master.renew()
                world.scheduler.at(world.now + lasts / 10, heal)
            case "master loading":
                master.loading = True
                world.scheduler.at(world.now + lasts / 10, heal)
            case "master full":
                master.full = True
                world.scheduler.at(world.now + lasts, heal)
            case "master read-only":
                master.read_only = True
                world.scheduler.at(world.now + lasts, heal)
            case "replica behind":
                number = source.randrange(len(master.behind))
                master.fall_behind(number, linked=source.random() < 0.5)
                world.scheduler.at(world.now + 4 * lasts, master.catch_up)
            case "failover":
                if master.fail_over(source.randrange(len(master.behind))):
                    kind = "failover, replica behind"
            case "flushed":
                master.data.clear()
            case "snapshot":
                self.kept = {m.name: copied(m.data) for m in world.network.masters}
                return
            case "put back":
                if self.kept is None:
                    return
                master.put_back(self.kept[master.name])
        world.count(kind)
        world.trace("fault", kind, process.name, master.name)
        world.oracle.changed(kind)

    def _strike(self) -> None:
        if not self.on:
            return
        kinds, weights = zip(*self.world.profile.kinds.items(), strict=True)
        self.inject(self.world.source.choices(kinds, weights)[0])
        self.begin()

    def _cut(self, process: Process, other: str, lasts: float) -> None:
        link = process.name, other
        self.world.network.cut.add(link)
        self.world.scheduler.at(
            self.world.now + lasts, lambda: self.world.network.cut.discard(link)
        )

    def _heal(self, master: Master) -> None:
        master.up, master.loading, master.full, master.read_only = True, False, False, False

    def _set_right(self, process: Process) -> None:
        process.clock.skew = 0.0

    def _keyholder_returns(self) -> None:
        self.world.keyholder.up = True
