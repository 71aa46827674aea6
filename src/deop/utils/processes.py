"""Processes that do not outlive the one that started them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def end_with_parent(*_: object) -> None:
    """Makes this process end when its parent does, even if that is killed: for initialisers of worker processes.

    A worker whose parent is gone may otherwise wait forever, for work or to be rid of its results. On Linux the kernel
    kills it, elsewhere a thread watches the parent. On Linux, the thread that started the worker counts as the parent.
    """
    parent = multiprocessing.parent_process()
    started_by = os.getppid()
    # With the start method "forkserver", the parent in the sense of the kernel is a server.
    if sys.platform.startswith("linux") and (parent is None or started_by == parent.pid):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != started_by:  # it ended before this call
            os._exit(1)
    elif parent is not None:

        def wait() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()
