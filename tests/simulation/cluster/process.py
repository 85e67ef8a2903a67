"""One aggregator process: its own handlers on a simulated Redis, and a file that outlives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gridveil.protocol.errors import GridveilError, Unavailable
from gridveil_services.aggregator.committer import Committer
from gridveil_services.aggregator.follower import Follower, load_city
from gridveil_services.aggregator.forerunner import Forerunner
from gridveil_services.aggregator.ingest import Ingest
from gridveil_services.aggregator.releaser import Releaser
from gridveil_services.aggregator.sealer import Sealer
from gridveil_services.aggregator.serve import STORE_FILE
from gridveil_services.aggregator.sharing import Sharing
from gridveil_services.aggregator.store.database import Database
from gridveil_services.aggregator.store.documents import SqliteDocuments
from gridveil_services.aggregator.store.redis.store import RedisStore
from gridveil_services.aggregator.store.schema import SCHEMA
from tests.simulation.cluster.keyholder import Link
from tests.simulation.cluster.network import SimulatedServers
from tests.simulation.cluster.tasks import Killed, Task
from tests.support.reports import CITY_ID

if TYPE_CHECKING:
    from tests.simulation.cluster.world import World

RETENTION_S = 7_200
LOOKS_S = {
    "sharing": (10.0, 120.0),
    "sealer": (10.0, 90.0),
    "releaser": (20.0, 120.0),
    "follower": (60.0, 240.0),
    "forerunner": (60.0, 240.0),
}
"""Seconds between two steps of each background work: seldom, as in a process that is slow."""
LOOKED_JUST_NOW = 0.9
"""How often a process has looked at the others shortly before a call comes."""


@dataclass
class ProcessClock:
    """The world's time, as this process has it."""

    world: World
    skew: float = 0.0

    def now(self) -> float:
        return self.world.now + self.skew

    def sleep(self, seconds: float) -> None:
        raise NotImplementedError

    def real(self, seconds: float) -> float:
        return seconds


class SteppedCommitter(Committer):
    """The product's queue, worked off by whoever handed in first instead of by a thread."""

    def __init__(
        self,
        world: World,
        store: RedisStore,
        clock: ProcessClock,
        check_alive: Callable[[], None],
    ) -> None:
        super().__init__(store, clock)
        self._world = world
        self._check_alive = check_alive
        self._busy = False
        self._waiting: list[Task] = []

    def _put(self, item: Any) -> None:
        super()._put(item)
        scheduler = self._world.scheduler
        while not item.done.done():
            if self._busy:
                assert scheduler.current is not None
                self._waiting.append(scheduler.current)
                scheduler.wait()
                self._check_alive()
                continue
            self._busy = True
            try:
                self.work_off_one()
            finally:
                self._busy = False
            for task in self._waiting:
                scheduler.at(scheduler.now, lambda task=task: scheduler.wake(task))  # type: ignore[misc]
            self._waiting.clear()


class Process:
    """Starts, works, dies, and starts again on the same file."""

    def __init__(self, world: World, name: str, folder: Path) -> None:
        self.world = world
        self.name = name
        self.clock = ProcessClock(world)
        self.up = False
        """It runs, perhaps not far enough to serve."""
        self.serves = False
        self.paused_until = 0.0
        self.folder = folder
        self._database: Database | None = None
        self._life = 0
        self._looks: dict[str, int] = {}

    def start(self) -> None:
        """Begin a life."""
        if self.up:
            return
        self.up = True
        self._life += 1
        self.world.trace(self.name, "starts")
        self.world.scheduler.start(self, self._boot)

    def crash(self) -> None:
        """Die, from inside one of its own tasks or from outside; start again some time later."""
        if self.up:
            self.up = self.serves = False
            self.world.trace(self.name, "crashes")
            self.world.scheduler.at(self.world.now, self._bury)
            pause = self.world.source.choice([1.0, 10.0, 600.0]) * self.world.source.random()
            self.world.scheduler.at(self.world.now + 0.1 + pause, self.start)
        current = self.world.scheduler.current
        if current is not None and current.owner is self:
            raise Killed

    def catch_up(self) -> None:
        """Look at the others, as one does twice a second; what is simulated is seldom enough."""
        if self.world.source.random() < LOOKED_JUST_NOW:
            self._step("sharing", self._life, again=False)
            self.check_alive()

    def pause(self, seconds: float) -> None:
        """Do nothing for a while, wherever it is."""
        self.paused_until = max(self.paused_until, self.world.now + seconds)
        self.world.trace(self.name, "pauses", seconds)
        if self.world.scheduler.current is not None:
            self.world.scheduler.sleep(self.paused_until)
            self.check_alive()

    def resume(self) -> None:
        """Go on before a pause is over."""
        self.paused_until = self.world.now
        self._look_at_all()

    def check_alive(self) -> None:
        """Asked wherever a process may have died."""
        if not self.up:
            raise Killed

    def why_poisoned(self, start: int) -> str:
        return self.store.why_poisoned(start)

    def close(self) -> None:
        """For good."""
        self.up = self.serves = False
        self._bury()

    def _bury(self) -> None:
        self.world.scheduler.kill(self)
        if self._database is not None:
            self._database.close()
            self._database = None

    def _fail(self) -> None:
        """The store cannot be trusted: the process stops, and is started again."""
        self.world.count("process stopped by a store that failed")
        self.world.scheduler.at(self.world.now, self.crash)

    def _boot(self) -> None:
        try:
            self._open()
        except Unavailable as error:
            self.world.trace(self.name, "cannot start", error.reason)
            self.crash()
        self.serves = True
        self._look_at_all()

    def _look_at_all(self) -> None:
        self._life += 1
        for name in self._works:
            self._look(name, self._life, self.world.source.uniform(0.1, 5))

    def _open(self) -> None:
        world = self.world
        database = Database(self.folder / STORE_FILE, SCHEMA, on_failure=self._fail)
        self._database = database
        servers = SimulatedServers(world.network, self, world.profile.wait, database.fail)
        self.store = RedisStore(servers, database, CITY_ID, self.clock)
        documents = SqliteDocuments(database)
        identity = bytes(world.keyholder.identity.verify_key)
        city = load_city(documents, CITY_ID, identity)
        committer = SteppedCommitter(world, self.store, self.clock, self.check_alive)
        keyholder = Link(world, self)
        self.follower = Follower(
            city=city,
            store=self.store,
            documents=documents,
            committer=committer,
            keyholder=keyholder,
            clock=self.clock,
            development=True,
        )
        releaser = Releaser(
            self.store, committer, keyholder, self.clock, CITY_ID, self.follower.follow_epochs
        )
        sealer = Sealer(
            city=city,
            store=self.store,
            documents=documents,
            committer=committer,
            clock=self.clock,
            retention_s=RETENTION_S,
            on_sealed=lambda: self._soon("releaser"),
        )
        self.ingest = Ingest(city, self.store, committer, self.clock, self._on_gap)
        sharing = Sharing(
            self.store,
            committer,
            self.clock,
            lambda: self._soon("releaser"),
            self.follower.lead,
        )
        self._works: dict[str, Callable[[], float]] = {
            "sharing": sharing.step,
            "follower": self.follower.step,
            "forerunner": Forerunner(self.store, keyholder, self.clock).step,
            "sealer": sealer.step,
            "releaser": releaser.step,
        }

    def _on_gap(self) -> None:
        self.follower.kick()
        self._soon("follower")

    def _soon(self, name: str) -> None:
        life, world = self._life, self.world
        world.scheduler.at(world.now + 0.01, lambda: self._look_now(name, life, again=False))

    def _look(self, name: str, life: int, delay: float) -> None:
        at = self.world.now + delay
        self.world.scheduler.at(at, lambda: self._look_now(name, life))

    def _look_now(self, name: str, life: int, *, again: bool = True) -> None:
        if not self.serves or life != self._life:
            return
        if self.world.now < self.paused_until:
            if again:
                self._look(name, life, self.paused_until - self.world.now)
            return
        self.world.scheduler.start(self, lambda: self._step(name, life, again=again))

    def _step(self, name: str, life: int, *, again: bool) -> None:
        if self._looks.get(name) == life:
            if again:
                self._look(name, life, 1.0)
            return
        self._looks[name] = life
        delay = 0.0
        try:
            delay = self._works[name]()
        except Unavailable as error:
            self.world.trace(self.name, name, error.reason)
            delay = 1.0
        except GridveilError as error:
            self.world.oracle.violated(f"{name} ended with {error.reason}")
        finally:
            if self._looks.get(name) == life:
                self._looks[name] = 0
        self.world.oracle.looked_at(self)
        if again:
            shortest, longest = LOOKS_S[name]
            pace = self.world.source.uniform(shortest, longest)
            self._look(name, life, pace if delay > longest else max(delay, pace))
