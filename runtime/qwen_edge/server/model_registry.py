"""The packages that are served: loaded when they are first asked for, unloaded when idle.

One model is in memory at a time unless more are allowed. Loading runs in a thread, once for all
who wait for it; a model that answers somebody is never unloaded.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Literal

from starlette.concurrency import run_in_threadpool

from qwen_edge.errors import QueueFullError, UsageError, did_you_mean
from qwen_edge.runtime.batch_model import BatchModel
from qwen_edge.runtime.manifest import Manifest
from qwen_edge.server.refusals import HttpRefusal

_LOGGER = logging.getLogger(__name__)
State = Literal["unloaded", "loading", "loaded"]
LoadPackage = Callable[[Path], BatchModel]
WaitFor = Callable[[Coroutine[object, object, BatchModel]], Awaitable[BatchModel]]
_SWEEP_S = 1.0


@dataclass
class ServedModel:
    """One package.

    Args:
        name: What requests call it.
        folder: Where it is.
        manifest: Of the package.

    State:
        `model` is set while it is loaded; `num_users` answers hold it.
    """

    name: str
    folder: Path
    manifest: Manifest
    state: State = "unloaded"
    model: BatchModel | None = None
    num_users: int = 0
    last_used_s: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class ModelRegistry:
    """All packages of a server. Belongs to the event loop.

    Args:
        packages: Folder and manifest of each, at least one.
        load: Opens a package; called in a thread.
        max_loaded: Most models in memory at once.
        unload_after_s: How long an idle model stays; None for always.

    Raises:
        UsageError: Two packages have the same name.
    """

    def __init__(
        self,
        packages: Sequence[tuple[Path, Manifest]],
        load: LoadPackage,
        *,
        max_loaded: int = 1,
        unload_after_s: float | None = None,
    ) -> None:
        self._load = load
        self._max_loaded = max_loaded
        self._unload_after_s = unload_after_s
        self.models: dict[str, ServedModel] = {}
        for folder, manifest in packages:
            if manifest.name in self.models:
                other = self.models[manifest.name].folder
                raise UsageError(
                    f"{str(folder)!r} and {str(other)!r} are both named {manifest.name!r}, so a "
                    "request could not say which one it means.",
                    "serve one of them",
                    name=manifest.name,
                )
            self.models[manifest.name] = ServedModel(manifest.name, folder, manifest)

    @property
    def loaded(self) -> list[ServedModel]:
        """Those in memory."""
        return [entry for entry in self.models.values() if entry.state == "loaded"]

    def find(self, name: str | None) -> ServedModel:
        """Return the model a request names; without a name the only one.

        Raises:
            HttpRefusal: 404: there is none of this name.
            UsageError: There is no name, and there are several models.
        """
        if name is None:
            if len(self.models) == 1:
                return next(iter(self.models.values()))
            raise UsageError(
                "The field 'model' is missing, and several models are served.",
                f"give one of: {', '.join(self.models)}",
                param="model",
            )
        if name not in self.models:
            raise HttpRefusal(
                404,
                f"There is no model {name!r:.100} here.{did_you_mean(name[:100], self.models)}",
                f"use one of: {', '.join(self.models)}",
                code="model_not_found",
                param="model",
            )
        return self.models[name]

    @asynccontextmanager
    async def use(self, entry: ServedModel, wait_for: WaitFor) -> AsyncIterator[BatchModel]:
        """Hold a model for the time of an answer; it is loaded where it is not yet.

        Args:
            entry: Which.
            wait_for: Waits for the loading, as long as the answer is wanted.

        Raises:
            QueueFullError: Another model answers, and both may not be in memory.
            EdgeError: It cannot be loaded.
        """
        entry.num_users += 1
        try:
            yield entry.model or await wait_for(self.load(entry))
        finally:
            entry.num_users -= 1
            entry.last_used_s = time.monotonic()

    async def load(self, entry: ServedModel) -> BatchModel:
        """Return a model, loaded; whoever asks meanwhile waits for the same loading.

        Raises:
            EdgeError: As `use`.
        """
        async with entry.lock:
            if entry.model is not None:
                return entry.model
            await self._make_room()
            entry.state = "loading"
            started_s = time.monotonic()
            try:
                model = await run_in_threadpool(self._load, entry.folder)
            except BaseException:
                entry.state = "unloaded"
                raise
            # It ends when the model is closed.
            Thread(target=model.batcher.run, name=f"steps of {entry.name}", daemon=True).start()
            entry.model, entry.state = model, "loaded"
            entry.last_used_s = time.monotonic()
            _LOGGER.info("Loaded %s in %.1f s", entry.name, entry.last_used_s - started_s)
            return model

    async def sweep(self) -> None:
        """Unload idle models again and again; cancel it to end it."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            if self._unload_after_s is None:
                continue
            oldest_s = time.monotonic() - self._unload_after_s
            for entry in self.loaded:
                if not entry.num_users and entry.last_used_s < oldest_s:
                    await self._unload(entry)

    async def close(self) -> None:
        """Unload all models, and end what they are answering."""
        for entry in self.models.values():
            await self._unload(entry)

    async def _make_room(self) -> None:
        """Unload the model that was not used for longest, where there are too many.

        Raises:
            QueueFullError: All of them are answering.
        """
        busy = [entry for entry in self.models.values() if entry.state != "unloaded"]
        if len(busy) < self._max_loaded:
            return
        idle = [entry for entry in self.loaded if not entry.num_users]
        if not idle:
            raise QueueFullError(
                f"{', '.join(entry.name for entry in busy)} is answering, and at most "
                f"{self._max_loaded:,} may be in memory at a time.",
                "ask again later, or start the server with a larger --max-loaded",
            )
        await self._unload(min(idle, key=lambda entry: entry.last_used_s))

    async def _unload(self, entry: ServedModel) -> None:
        model, entry.model, entry.state = entry.model, None, "unloaded"
        if model is not None:
            await run_in_threadpool(model.close)
            _LOGGER.info("Unloaded %s", entry.name)
