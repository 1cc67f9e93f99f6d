"""Whole videos kept in memory: the read plan `resident`."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Data = TypeVar("Data")


class VideoPool(Generic[Data]):
    """Bytes of videos, the least recently used going first; for any number of threads.

    Private memory of this process: nothing is left behind however it ends. limit_bytes: of the videos that are there
    and of those being read, together; a thread whose video does not fit beside those being read waits for one of them.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._videos: OrderedDict[Hashable, tuple[Future[Data], int]] = OrderedDict()
        self._taken = 0
        self._changed = threading.Condition()

    def get(self, key: Hashable, num_bytes: int, load: Callable[[], Data]) -> tuple[Data, bool]:
        """The bytes of a video, and whether `load` was called for them; a thread waits for one that loads the same.

        num_bytes: at most limit_bytes, else ValueError. An error of `load` is raised in all of them; the next call
        tries again.
        """
        if num_bytes > self.limit_bytes:
            raise ValueError(f"a video of {num_bytes} bytes does not fit into a pool of {self.limit_bytes}")
        with self._changed:
            future, ours = self._claim(key, num_bytes)
        if ours:
            try:
                future.set_result(load())
            except BaseException as error:
                future.set_exception(error)
                self._drop(key, future)
            with self._changed:
                self._changed.notify_all()
        return future.result(), ours

    def _claim(self, key: Hashable, num_bytes: int) -> tuple[Future[Data], bool]:
        """The future of a video, and whether the caller has to fulfil it."""
        while key not in self._videos:
            self._make_room(num_bytes)
            if self._taken + num_bytes <= self.limit_bytes:
                future: Future[Data] = Future()
                self._videos[key] = future, num_bytes
                self._taken += num_bytes
                return future, True
            self._changed.wait()  # for a video that is being read: the others are dropped
        self._videos.move_to_end(key)
        return self._videos[key][0], False

    def _make_room(self, wanted: int) -> None:
        # A video that is being read takes its memory whether it is listed or not; unlisted, it would be read again.
        read = [(key, num_bytes) for key, (future, num_bytes) in self._videos.items() if future.done()]
        for key, num_bytes in read:
            if self._taken + wanted <= self.limit_bytes:
                break
            del self._videos[key]
            self._taken -= num_bytes

    def _drop(self, key: Hashable, future: Future[Data]) -> None:
        with self._changed:
            if key in self._videos and self._videos[key][0] is future:
                self._taken -= self._videos.pop(key)[1]
