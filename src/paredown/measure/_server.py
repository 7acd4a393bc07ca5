"""Imported by the fork server alone, when it starts: the server dies with the process it serves.

Without this a `kill -9` of the search leaves server and children running, since each child holds
the pipe that tells the server its owner is alive. The kernel watches the *thread* that started the
server, not its process: :func:`paredown.measure.child.start_server` starts it from a thread that
lives as long as the process, so that jobs may be run from threads that end.
"""

import ctypes
import signal

PR_SET_PDEATHSIG = 1

ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
