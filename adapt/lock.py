"""Who works on a folder? (two commands on one folder would overwrite each other's files)"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapt.errors import AdaptError

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
ELSEWHERE = "wait for it, or choose another place with --out"


@contextmanager
def alone(file: Path, fix: str) -> Iterator[None]:
    """Keep other processes from what a lock file stands for, as long as the context lasts.

    The lock is the system's and ends with the process, however that ends: the file of a process
    that was killed keeps nobody out. Windows and file systems without locks keep nobody out either.

    Args:
        file: The lock file; its folder exists. It holds the process id, and goes at the end.
        fix: What to do instead, for the error.

    Raises:
        AdaptError: If another process has it.
    """
    if fcntl is None:
        yield
        return
    lock = _locked(file, fix)
    try:
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(lock)


def _locked(file: Path, fix: str) -> int:
    """Return the open lock file."""
    while True:
        lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            number = os.read(lock, 20).decode(errors="replace")
            os.close(lock)
            process = f"process {number}" if number else "another process"
            raise AdaptError(f"{file} is held by {process}; {fix}") from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                os.close(lock)
                raise AdaptError(f"cannot lock {file}: {error.strerror}") from error
            return lock
        if _is(file, lock):
            return lock
        os.close(lock)  # its owner removed it between opening and locking


def _is(file: Path, opened: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(opened))
    except FileNotFoundError:
        return False
