"""Does a process outlive the one that started it? (it must not: it would go on writing files)"""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, however that ended.

    Pass it as the initializer of a pool: a command that is killed takes its processes along, and
    the next one on the same folder works alone. It waits for the parent in a thread of its own.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)  # without what it had still to write: nobody waits for it
