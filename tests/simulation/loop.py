"""An asyncio loop on virtual time, one a machine, so that a clock's rate, a pause and a crash are the machine's own."""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar, cast

from tests.simulation.world import Broken, World

T = TypeVar("T")

#: timers are late by this much
RESOLUTION_S = 1e-6


class Clock:
    """A machine's monotonic seconds: they begin anywhere and run at their own rate."""

    def __init__(self, world: World, rate: float, started_at: float) -> None:
        self._world = world
        self.rate = rate
        self._started_at = started_at
        self._origin = world.now

    def __call__(self) -> float:
        return self._started_at + (self._world.now - self._origin) * self.rate

    def when(self, at: float) -> float:
        """The virtual second at which this clock shows `at`."""
        return self._origin + (at - self._started_at) / self.rate


class VirtualLoop(asyncio.AbstractEventLoop):
    """What tasks, futures, sleeps, timeouts and threads of asyncio need, and no more."""

    def __init__(self, world: World, clock: Clock) -> None:
        self._world = world
        self._clock = clock
        self._ready: deque[asyncio.Handle] = deque()
        self._due = False
        #: in the order of their making, so that a crash cancels them in the same order each time
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._dead = False
        self.paused = False

    def enter(self) -> None:
        """What runs next runs on this loop."""
        events._set_running_loop(self)

    def time(self) -> float:
        return self._clock()

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def get_task_factory(self) -> None:
        return None

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        failure = context.get("exception")
        if failure is not None and not self._dead:
            raise Broken(f"{context.get('message')}: {type(failure).__name__}: {failure}") from failure

    # Callbacks

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        self._soon()
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)

        def due() -> None:
            if not handle.cancelled() and not self._dead:
                self._ready.append(handle)
                self._soon()

        # A clock that runs at its own rate may show a hair less than `when` at that moment, and whoever then waits for
        # the rest would wait for ever: time has to pass.
        self._world.at(max(self._clock.when(when), self._world.now) + RESOLUTION_S, due)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None: ...

    def _soon(self) -> None:
        if not self._due and not self.paused and not self._dead:
            self._due = True
            self._world.at(self._world.now, self._run)

    def _run(self) -> None:
        self._due = False
        if self.paused or self._dead:
            return
        self.enter()
        self._drain(len(self._ready))
        if self._ready:
            self._soon()

    def _drain(self, count: int) -> None:
        for _ in range(count):
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()

    # Tasks

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        task = asyncio.Task(cast("Coroutine[Any, Any, T]", coro), loop=self, name=name, context=context)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Another thread's work happens at one moment, some milliseconds from now."""
        future: asyncio.Future[T] = self.create_future()

        def work() -> None:
            if future.cancelled() or self._dead:
                return
            try:
                future.set_result(func(*args))
            except OSError as error:
                future.set_exception(error)

        self._world.after(self._world.between(0.001, 0.02), work)
        return future

    # The machine

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        if self._ready:
            self._soon()

    def kill(self) -> None:
        """The process is gone: its tasks end here and nothing they do any more is seen by anyone."""
        self.enter()
        self._dead = True
        for task in list(self._tasks):
            task.cancel()
        for _ in range(20):
            self._drain(len(self._ready))
        self._ready.clear()
