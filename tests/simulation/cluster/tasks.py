"""One thread of control: what would run at the same time takes turns, in an order from a seed.

A task is a greenlet, for the sake of its own stack: who hands over goes on where it stopped when it
is called again. So nothing depends on the machine.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from greenlet import getcurrent, greenlet


class Killed(BaseException):
    """The process that a task belongs to has died."""


@dataclass(eq=False)
class Task:
    """Something that may wait."""

    action: Callable[[], Any]
    owner: object
    stack: greenlet
    killed: bool = False
    ended: bool = False
    waits: bool = False


class Scheduler:
    """Events in the order of their times, and the tasks that they start."""

    def __init__(self, start: float) -> None:
        self.now = start
        self.steps = 0
        self.current: Task | None = None
        self._events: list[tuple[float, int, Callable[[], Any]]] = []
        self._number = 0
        self._main = getcurrent()
        self.tasks: dict[Task, None] = {}

    def at(self, when: float, action: Callable[[], Any]) -> None:
        """Do something then, or now if that is past; of the same time, in the order asked for."""
        self._number += 1
        heapq.heappush(self._events, (max(when, self.now), self._number, action))

    def run(self, until: float) -> None:
        """Do everything that is due before ``until``; what fails is raised."""
        while self._events and self._events[0][0] < until:
            self.now, _, action = heapq.heappop(self._events)
            self.steps += 1
            action()
        self.now = max(self.now, until)

    def start(self, owner: object, action: Callable[[], Any]) -> Task:
        """Run a task until it waits or ends. Not from inside another task."""
        assert self.current is None
        task = Task(action, owner, greenlet(self._work, self._main))
        self.tasks[task] = None
        self._hand_to(task)
        return task

    def sleep(self, until: float) -> None:
        """The running task waits."""
        task = self._running()
        self.at(until, lambda: self.wake(task))
        self._wait(task)

    def wait(self) -> None:
        """The running task waits until somebody wakes it."""
        self._wait(self._running())

    def wake(self, task: Task) -> None:
        """Go on with a task that waits."""
        if task.waits and not task.ended:
            self._hand_to(task)

    def kill(self, owner: object) -> None:
        """Unwind all tasks of an owner, in the order they were started."""
        for task in [task for task in self.tasks if task.owner is owner]:
            task.killed = True
            self.wake(task)

    def close(self) -> None:
        """Unwind all tasks."""
        for task in list(self.tasks):
            task.killed = True
            self.wake(task)

    def _running(self) -> Task:
        assert self.current is not None
        return self.current

    def _hand_to(self, task: Task) -> None:
        self.current, task.waits = task, False
        try:
            task.stack.switch(task)
        finally:
            self.current = None

    def _wait(self, task: Task) -> None:
        task.waits = True
        self._main.switch()
        if task.killed:
            raise Killed

    def _work(self, task: Task) -> None:
        try:
            task.action()
        except Killed:
            pass
        finally:
            task.ended = True
            del self.tasks[task]
