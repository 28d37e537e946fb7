"""The child process of the models: started once, and again if it ended; labels one scan at a time."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from slicemill.common.errors import InputError
from slicemill.web.serve.child import Child, ChildEndedError
from slicemill.web.serve.messages import Message
from slicemill.web.serve.records import (
    CancelOrder,
    FailedMessage,
    LabeledMessage,
    ModelRecord,
    ModelsMessage,
    SegmentedMessage,
    SegmentOrder,
)

WATCH_SECONDS = 0.2
MOST_MEMORY = 0.75
"""Share of the machine's memory that the child process may take; the rest is for the server, which must survive it."""


class Models:
    """The models, which are loaded while the page opens."""

    def __init__(self, provider: str, paths: Sequence[Path]) -> None:
        self.most_bytes = int(MOST_MEMORY * psutil.virtual_memory().total)
        """Memory that the child process may take for a scan."""
        self._took_too_much = False
        self._words = (provider, *(str(path.absolute()) for path in paths))
        self._child: Child | None = None
        self._turn = asyncio.Lock()
        self.records: tuple[ModelRecord, ...] | None = None
        """What is known of the models; None while they are loaded."""
        self.failure: str | None = None
        """Why they cannot be loaded."""

    @property
    def pid(self) -> int | None:
        """Return the number of the child process."""
        return self._child.pid if self._child is not None else None

    async def load(self) -> None:
        """Start the child process and wait until the models are loaded, or `failure` says why not."""
        async with self._turn:
            await self._load()

    async def _load(self) -> None:
        self._child = await Child.start("model_child", *self._words)
        try:
            message = await self._child.read()
            if message.kind == FailedMessage.__name__:
                self.failure = message.read(FailedMessage).reason
            else:
                self.records = message.read(ModelsMessage).models
                self.failure = None
        except ChildEndedError as error:
            self.failure = f"the models cannot be loaded: {error}"

    async def segment(
        self, order: SegmentOrder, begun: Callable[[], None], progress: Callable[[LabeledMessage], None]
    ) -> SegmentedMessage:
        """Label a scan in its turn; `begun` is called when it is, `progress` when more of it is labeled.

        Raises
        ------
        InputError
            The scan cannot be labeled, or the child process has ended; the next scan gets a new one.
        """
        async with self._turn:
            if self._child is None or not self._child.is_running:
                await self._restart()
            child = self._child
            if child is None or self.failure is not None:
                raise InputError(self.failure or "the models are not loaded.")
            begun()
            self._took_too_much = False
            watch = asyncio.create_task(self._watch_memory(child))
            try:
                await child.send(order)
                while True:
                    message = await child.read()
                    if (result := _take(message, order.job, progress)) is not None:
                        return result
            except asyncio.CancelledError:
                await child.send(CancelOrder(job=order.job))
                raise
            except ChildEndedError as error:
                if self._took_too_much:
                    raise InputError(
                        f"the model took more than {self.most_bytes / 1e9:.3g} GB of memory for it, which is the most "
                        "here. Use a scan of fewer or smaller slices, or a machine with more memory."
                    ) from error
                raise InputError(f"the model stopped: {error}") from error
            finally:
                watch.cancel()

    async def _watch_memory(self, child: Child) -> None:
        """End the child process when it takes more memory than it may; RLIMIT_AS would count what GPUs only reserve."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(child.pid)
            while process.memory_info().rss <= self.most_bytes:
                await asyncio.sleep(WATCH_SECONDS)
            self._took_too_much = True
            await child.kill()

    async def close(self) -> None:
        """End the child process."""
        if self._child is not None:
            await self._child.kill()

    async def _restart(self) -> None:
        await self.close()
        self.failure = None
        await self._load()


def _take(message: Message, job: int, progress: Callable[[LabeledMessage], None]) -> SegmentedMessage | None:
    """Return the result if a message has it; messages about a job that was canceled are passed over."""
    if message.record.get("job") != job:
        return None
    if message.kind == LabeledMessage.__name__:
        progress(message.read(LabeledMessage))
        return None
    if message.kind == FailedMessage.__name__:
        raise InputError(message.read(FailedMessage).reason)
    return message.read(SegmentedMessage)
