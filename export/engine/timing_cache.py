"""How do the builds of a process share the timings of tactics, in memory and in a file?"""

import functools
import os
import time
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from adapt.artifacts import atomic_path, make_folder
from adapt.errors import AdaptError
from export.engine.installed import builder_of

PAUSE = 100  # between two writes of the file, at least, in durations of a write


class TimingCache:
    """What TensorRT timed once in this process, or in those that wrote the file.

    The file is read once and replaced as a whole, after a build that is not too soon after the last
    write, and when the process ends. A process that is killed leaves a complete file. Nothing is
    locked, since locks fail on some file systems of clusters: whoever replaces a file takes over
    first what others have written to it, and what two write in the same moment is timed again.

    Args:
        trt: The TensorRT package.
        path: The file; None for none.

    Raises:
        AdaptError: If the file is damaged, of another TensorRT or GPU, or no file.
    """

    def __init__(self, trt: Any, path: Path | None) -> None:
        self._path = path
        self._config = builder_of(trt).create_builder_config()
        self._seen: tuple[int, ...] | None = None  # the file as this process knows it
        self._next_write = 0.0
        self._saved = True
        if path is not None:
            make_folder(path.parent)
            Finalize(None, self.save, exitpriority=0)  # of worker processes too
        self._cache = self._read() or self._config.create_timing_cache(b"")

    def attach(self, config: Any) -> None:
        """Let a build use the timings and add to them."""
        config.set_timing_cache(self._cache, ignore_mismatch=False)
        self._saved = False

    def built(self) -> None:
        """Write the file, unless the last write was just now."""
        if time.monotonic() >= self._next_write:
            self.save()

    def save(self) -> None:
        """Write the file if there is one, and a build since the last write."""
        if self._path is None or self._saved:
            return
        start = time.monotonic()
        if self._stat() != self._seen and (others := self._read()) is not None:
            self._cache.combine(others, ignore_mismatch=False)
        with atomic_path(self._path) as temporary:
            temporary.write_bytes(bytes(self._cache.serialize()))
        self._seen, self._saved = self._stat(), True
        self._next_write = start + PAUSE * (time.monotonic() - start)

    def _read(self) -> Any | None:
        path = self._path
        if path is None or not path.exists():
            return None
        if path.is_dir():
            raise AdaptError(f"timing cache {path} is a folder; name a file")
        self._seen = self._stat()
        content = path.read_bytes()
        cache = self._config.create_timing_cache(content)
        if cache is None or not self._config.set_timing_cache(cache, ignore_mismatch=False):
            raise AdaptError(
                f"timing cache {path} is damaged, or of another TensorRT or GPU; delete it or name "
                "another file"
            )
        return cache

    def _stat(self) -> tuple[int, ...] | None:
        try:
            found = os.stat(self._path or "")
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns


@functools.cache
def timing_cache(trt: Any, path: Path | None) -> TimingCache:
    """Return the timings that all builds of this process share, by their file."""
    return TimingCache(trt, path)
