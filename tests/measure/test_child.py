"""What a job does to itself must stay there: crash, hang, memory, errors, and a dying parent."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from paredown.errors import CandidateFailed, InputError, RecipeError
from paredown.measure.child import GIB, Jobs, Limits, await_turn, group_bytes, tell


def double(x):
    tell({"halfway": x})
    return 2 * x


def segfault():
    ctypes.string_at(0)


def hang():
    time.sleep(60)


def eat():
    held = []
    while True:
        held.append(bytearray(64 << 20))
        time.sleep(0.01)


def typed():
    raise RecipeError("no setting 'x'")


def user_bug():
    return [1][3]


@pytest.fixture(scope="module")
def jobs():
    return Jobs()


def test_returns_and_tells(jobs):
    heard = []
    assert jobs.run(double, 21, on_message=heard.append) == 42
    assert heard == [{"halfway": 21}]


def test_segfault_costs_only_itself(jobs):
    with pytest.raises(CandidateFailed, match="SIGSEGV"):
        jobs.run(segfault)
    assert jobs.run(double, 1) == 2


def in_turn(seconds):
    begun = time.monotonic()
    time.sleep(seconds)
    ready = time.monotonic()
    await_turn()
    alone = time.monotonic()
    time.sleep(0.2)
    return begun, ready, alone, time.monotonic()


def test_jobs_run_side_by_side_until_they_take_turns(jobs):
    found = jobs.run_in_turns(in_turn, [(0.1,), (0.8,), (0.4,)])
    begun, ready, alone, ended = zip(*found, strict=True)
    assert max(begun) < min(ready) + 0.5
    assert min(alone) >= max(ready)
    order = sorted(range(3), key=lambda i: alone[i])
    assert all(alone[b] >= ended[a] for a, b in pairwise(order))


def fail_early(how):
    if how == "crash":
        segfault()
    if how == "raise":
        typed()
    await_turn()
    return how


def test_a_job_that_ends_before_its_turn_keeps_nobody_waiting(jobs):
    crashed, raised, done = jobs.run_in_turns(fail_early, [("crash",), ("raise",), ("no",)])
    assert isinstance(crashed, CandidateFailed)
    assert isinstance(raised, RecipeError)
    assert done == "no"


def test_a_turn_alone_comes_at_once(jobs):
    assert jobs.run(fail_early, "no") == "no"
    assert fail_early("no") == "no"


def test_hang_is_killed_at_its_limit(jobs):
    start = time.monotonic()
    with pytest.raises(CandidateFailed, match="hung"):
        jobs.run(hang, limits=Limits(1.0, GIB))
    assert time.monotonic() - start < 10


def test_memory_limit(jobs):
    with pytest.raises(CandidateFailed, match="out of memory"):
        jobs.run(eat, limits=Limits(60.0, GIB))


def test_own_errors_come_back_typed(jobs):
    with pytest.raises(RecipeError, match="no setting 'x'"):
        jobs.run(typed)


def test_user_errors_name_the_users_line(jobs):
    with pytest.raises(CandidateFailed, match=r"IndexError.*test_child.py.*\[1\]\[3\]"):
        jobs.run(user_bug)


def test_what_cannot_be_sent_is_refused_with_the_fix(jobs):
    with pytest.raises(InputError, match="put their definitions into a file"):
        jobs.run(double, lambda x: x)


def test_group_bytes_counts_this_process():
    assert group_bytes(os.getpid()) > 10 << 20


PARENT = """
import sys, time
from paredown.measure.child import await_turn, Jobs
sys.path.insert(0, {here!r})
import sleeper
if __name__ == "__main__":
    Jobs().run(sleeper.note_and_sleep, {note!r})
"""

SLEEPER = """
import os, time
from itertools import pairwise
from pathlib import Path
def note_and_sleep(note):
    Path(note).write_text(str(os.getpid()))
    time.sleep(60)
"""


def test_children_die_with_a_killed_parent(tmp_path):
    note = tmp_path / "pid"
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(here=str(tmp_path), note=str(note)))
    parent = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    deadline = time.monotonic() + 30
    while not note.exists() or not note.read_text():
        assert time.monotonic() < deadline, "the job never started"
        time.sleep(0.05)
    child = int(note.read_text())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    gone(child)


def gone(pid):
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        if state == "Z":
            break
        assert time.monotonic() < deadline, "it outlived what started it"
        time.sleep(0.05)


def holds_a_lock():
    lock = multiprocessing.get_context().RLock()
    with lock:
        return os.getpid()


def killed_with_a_lock():
    lock = multiprocessing.get_context().RLock()
    with lock:
        os.kill(os.getpid(), signal.SIGKILL)


LEAKY = """
import sys
sys.path.insert(0, {here!r})
import test_child
from paredown.errors import CandidateFailed
if __name__ == "__main__":
    jobs = test_child.Jobs()
    jobs.run(test_child.holds_a_lock)
    try:
        jobs.run(test_child.killed_with_a_lock)
    except CandidateFailed as e:
        print(e)
"""


def test_locks_of_finished_and_killed_jobs_are_not_leaked(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(LEAKY.format(here=str(Path(__file__).parent)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert "SIGKILL" in done.stdout
    assert done.stderr == ""


def test_a_worker_of_a_job_dies_with_it(tmp_path, jobs):
    note = tmp_path / "pid"
    with pytest.raises(CandidateFailed, match="hung"):
        jobs.run(hang_with_a_worker, str(note), limits=Limits(2.0, GIB))
    gone(int(note.read_text()))


def hang_with_a_worker(note):
    worker = multiprocessing.Process(target=time.sleep, args=(60,))
    worker.start()
    Path(note).write_text(str(worker.pid))
    time.sleep(60)


def test_the_server_outlives_the_thread_that_ran_the_first_job():
    """In a process of its own: here the server may have been started by another test."""
    code = (
        "import threading, os, test_child\n"
        "from multiprocessing.forkserver import _forkserver\n"
        "jobs = test_child.Jobs()\n"
        "t = threading.Thread(target=jobs.run, args=(test_child.double, 1))\n"
        "t.start(); t.join()\n"
        "first = _forkserver._forkserver_pid\n"
        "assert jobs.run(test_child.double, 2) == 4\n"
        "assert jobs.run(os.getppid) == _forkserver._forkserver_pid == first\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr
