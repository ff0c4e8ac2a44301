"""The first code of a child process: ties its life to its parent's, then becomes the module it was started for.

`python -P -m node.child PARENT_PID MODULE [ARGUMENT…]`. On Linux the kernel kills it when the parent's thread that
started it ends (prctl PR_SET_PDEATHSIG), so kill -9 of a parent leaves no orphans. Elsewhere a thread watches the
parent's id. Killing is safe: whatever a node has sent, it has committed before. Started by `node.process`.
"""

import ctypes
import os
import runpy
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
WATCH_EVERY_S = 0.5


def tie_to_parent(parent_pid: int) -> None:
    """From here on this process does not outlive `parent_pid`."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    else:
        threading.Thread(target=_watch, args=(parent_pid,), daemon=True).start()
    if os.getppid() != parent_pid:  # it ended before the line above
        os._exit(1)


def _watch(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(WATCH_EVERY_S)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    tie_to_parent(int(sys.argv[1]))
    module = sys.argv[2]
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
