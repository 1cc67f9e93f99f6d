"""Whole videos kept in memory: the read plan `resident`."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future


class VideoPool:
    """Bytes of videos, the least recently used going first; for any number of threads.

    Private memory of this process: nothing is left behind however it ends. limit_bytes: of the videos that are there
    and of those being read; above it are only what threads are reading right now, one video each, and what of that was
    read last.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._videos: OrderedDict[Hashable, tuple[Future[bytes], int]] = OrderedDict()
        self._taken = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, num_bytes: int, load: Callable[[], bytes]) -> tuple[bytes, bool]:
        """The bytes of a video, and whether `load` was called for them; a thread waits for one that loads the same.

        An error of `load` is raised in all of them; the next call tries again.
        """
        with self._lock:
            future, ours = self._claim(key, num_bytes)
        if ours:
            try:
                future.set_result(load())
            except BaseException as error:
                future.set_exception(error)
                self._drop(key, future)
        return future.result(), ours

    def _claim(self, key: Hashable, num_bytes: int) -> tuple[Future[bytes], bool]:
        """The future of a video, and whether the caller has to fulfil it."""
        if key in self._videos:
            self._videos.move_to_end(key)
            return self._videos[key][0], False
        future: Future[bytes] = Future()
        self._videos[key] = future, num_bytes
        self._taken += num_bytes
        self._make_room()
        return future, True

    def _make_room(self) -> None:
        # A video that is being read takes its memory whether it is listed or not; unlisted, it would be read again.
        read = [(key, num_bytes) for key, (future, num_bytes) in self._videos.items() if future.done()]
        for key, num_bytes in read:
            if self._taken <= self.limit_bytes:
                break
            del self._videos[key]
            self._taken -= num_bytes

    def _drop(self, key: Hashable, future: Future[bytes]) -> None:
        with self._lock:
            if key in self._videos and self._videos[key][0] is future:
                self._taken -= self._videos.pop(key)[1]
