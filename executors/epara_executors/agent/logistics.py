"""Models on their way to this server's disk, as the agent's event loop sees it: one after another, in threads.

A fetch outlives the call that asked for it: whoever waits may leave, and the next call finds it further on. What runs
here, and what the latest plan asked for, never leaves the cache.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from epara_executors.agent.memory import give_back_soon
from epara_executors.agent.torch_launcher import in_thread
from epara_executors.weights.cache import ModelCache
from epara_executors.weights.fetch import Fetcher, FetchFailed, Fetching, Stopped
from epara_executors.weights.files import hub_folder, local_folder
from epara_opt.control.ports import Fence, FetchObservation, FetchSpec
from epara_opt.errors import ExecutorRefused

log = logging.getLogger(__name__)

LOOP_PATIENCE_S = 60.0  # of the fetching thread: an event loop that takes longer has ended


class Logistics:
    """Of one executor."""

    def __init__(
        self,
        server: str,
        *,
        model_root: Path,
        cache: ModelCache,
        fetcher: Fetcher,
        stop: threading.Event,
        running: Callable[[], Iterable[str]],
        needs_files: Callable[[str], bool] = lambda source: True,
    ) -> None:
        """running: sources of all that is loaded or to be loaded. needs_files: of a source. stop: the fetcher's."""
        self._loop = asyncio.get_running_loop()
        self._server = server
        self._model_root = model_root
        self._cache = cache
        self._fetcher = fetcher
        self._stop = stop
        self._running = running
        self._needs_files = needs_files
        self._told: dict[str, Fetching] = {}  # on their way, or failed
        self._tasks: dict[str, asyncio.Task[str]] = {}  # each ends with why it failed, or nothing
        self._turn = asyncio.Lock()  # one model at a time: the bandwidth is one
        self._asked: tuple[Fence, set[str]] = (Fence(epoch=0, generation=0), set())

    @property
    def received_bytes(self) -> int:
        return self._fetcher.received_bytes

    async def fetch(self, models: Sequence[FetchSpec], fence: Fence, *, wait_s: float) -> tuple[FetchObservation, ...]:
        """Have models on this disk; what is still on its way after `wait_s`. Raises ExecutorRefused, says why."""
        asked = {m.source for m in models}
        self._asked = (fence, self._asked[1] | asked if self._asked[0] == fence else asked)
        here = await asyncio.to_thread(lambda: {s for s in asked if self._is_here(s)})
        for spec in models:
            if spec.source in here:
                if spec.source not in self._tasks:
                    self._told.pop(spec.source, None)
            elif spec.source not in self._tasks:
                self._told[spec.source] = Fetching(spec.source)
                self._tasks[spec.source] = asyncio.create_task(self._one(spec), name=f"fetch {spec.source}")
        waited = [self._tasks[s] for s in asked if s in self._tasks]
        if waited:
            await asyncio.wait(waited, timeout=wait_s)
        failed = [t.result() for t in waited if t.done() and not t.cancelled() and t.result()]
        if failed:
            raise ExecutorRefused(self._server, "; ".join(sorted(failed)))
        return tuple(o for o in self.observations() if o.source in asked and o.state != "failed")

    async def _one(self, spec: FetchSpec) -> str:
        told = self._told[spec.source]
        try:
            async with self._turn:
                folder = await in_thread(lambda: self._fetcher.fetch(spec.holders, told, kept=self._kept))
            log.info("model %s: %d bytes in %s, from %s", spec.source, told.total_bytes, folder, told.origin)
            del self._told[spec.source]
            return ""
        except (FetchFailed, Stopped) as e:
            told.state, told.detail = "failed", str(e) or "the executor leaves"
            log.warning("%s", told.detail)
            return told.detail
        except Exception as e:  # nobody foresaw it: the next fetch must not wait for this one
            told.state, told.detail = "failed", f"model {spec.source}: {type(e).__name__}: {e}"
            log.exception("%s", told.detail)
            return told.detail
        finally:
            del self._tasks[spec.source]
            give_back_soon()

    def observations(self) -> tuple[FetchObservation, ...]:
        """What is on its way, and what could not be had since it was last asked for."""
        return tuple(
            FetchObservation(
                source=t.source,
                state=t.state,
                origin=t.origin,
                done_bytes=t.done_bytes,
                total_bytes=t.total_bytes,
                detail=t.detail,
            )
            for _, t in sorted(self._told.items())
        )

    async def used(self) -> None:
        """Everything that runs here has been in use until now: what leaves next is the last to be removed."""
        await asyncio.to_thread(self._cache.touch, set(self._running()))

    def leave(self) -> None:
        """End what is under way; what has come of it stays."""
        self._stop.set()

    async def close(self) -> None:
        """Leave, and let another have the cache."""
        self.leave()
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=5.0)
        self._cache.close()

    def _is_here(self, source: str) -> bool:
        if not self._needs_files(source) or local_folder(source, self._model_root) is not None:
            return True
        if self._cache.current(source) is not None:
            self._cache.touch([source])
            return True
        return hub_folder(source) is not None

    def _kept(self) -> set[str]:
        """For the fetching thread; looked up on the event loop, where groups come and go."""
        found: concurrent.futures.Future[set[str]] = concurrent.futures.Future()
        self._loop.call_soon_threadsafe(lambda: found.set_result({*self._running(), *self._asked[1]}))
        return found.result(timeout=LOOP_PATIENCE_S)
