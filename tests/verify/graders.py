"""Verifiers named as `graders:<function>` in the tests; what a user's own might do wrong."""

import ctypes
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time


def right(answer, gold, metadata):
    return float(answer == gold)


def half(answer, gold, metadata):
    return 0.5


def as_told(answer, gold, metadata):
    return metadata["reward"]


def not_a_number(answer, gold, metadata):
    return float("nan")


def spins_in_c(answer, gold, metadata):
    return float(len(str(7 ** (10**9))))


def sleeps(answer, gold, metadata):
    time.sleep(3600)


def leaves(answer, gold, metadata):
    os._exit(int(gold))


def quits(answer, gold, metadata):
    sys.exit("a verifier that ends its process")


def segfaults(answer, gold, metadata):
    ctypes.string_at(0)


def raises(answer, gold, metadata):
    raise KeyError(gold)


def rambles(answer, gold, metadata):
    raise ValueError("a" * 1000 + "\nand on")


def fills_memory(answer, gold, metadata):
    return float(len(bytearray(6 * 2**30)))


def by_mood(answer, gold, metadata):
    """Does to its worker what the answer says; else grades."""
    faults = {"spin": spins_in_c, "sleep": sleeps, "raise": raises}
    return faults.get(answer, right)(answer, gold, metadata)


def imports_torch(answer, gold, metadata):
    return float("torch" in sys.modules)


def process_id(answer, gold, metadata):
    return float(os.getpid())


def prints(answer, gold, metadata):
    print("noise on standard output")
    return 1.0


def in_a_child(answer, gold, metadata):
    """The child of a fork goes on as if it were the worker."""
    os.fork()
    return right(answer, gold, metadata)


def raises_in_a_child(answer, gold, metadata):
    if os.fork() == 0:
        raise ValueError("in the child")
    return right(answer, gold, metadata)


def in_many_processes(answer, gold, metadata):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return max(pool.starmap(right, [(answer, gold, metadata)] * 3))


def behind_python(answer, gold, metadata):
    """A fork that no hook of Python sees, whose child speaks later."""
    if ctypes.CDLL(None).fork() == 0:
        time.sleep(0.05)
    return right(answer, gold, metadata)


def leaves_a_daemon(answer, gold, metadata):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], close_fds=False)
    return right(answer, gold, metadata)


def leaves_a_thread(answer, gold, metadata):
    threading.Thread(target=time.sleep, args=(3600,)).start()
    return right(answer, gold, metadata)


def becomes_a_daemon(answer, gold, metadata):
    """The worker leaves, and its child goes on in a session of its own."""
    if os.fork():
        os._exit(0)
    os.setsid()
    return right(answer, gold, metadata)


def writes_everywhere(answer, gold, metadata):
    """On every descriptor that is open, what could be taken for answers."""
    for fd in range(3, 64):
        try:
            os.write(fd, metadata["noise"].encode())
        except OSError:
            continue
    return right(answer, gold, metadata)


def answers_for_its_worker(answer, gold, metadata):
    """With the number of the request, which the frames above know."""
    frame = sys._getframe()
    while "channel" not in frame.f_locals or "number" not in frame.f_locals:
        frame = frame.f_back
    message = f"[{frame.f_locals['number']}, {metadata['verdict']}]\n"
    frame.f_locals["channel"]._socket.sendall(message.encode())
    time.sleep(3600)


def closes_everything(answer, gold, metadata):
    os.closerange(3, 64)
    return right(answer, gold, metadata)


def changes_its_surroundings(answer, gold, metadata, getcwd=os.getcwd, chdir=os.chdir):
    """Leaves an alarm, another folder and blunted functions behind, as sandboxes of code do; 1 if it finds no alarm and
    is where it began."""
    found = [getcwd() == "/", signal.getitimer(signal.ITIMER_REAL)[0] > 0]
    found.append(signal.getsignal(signal.SIGXCPU) is not signal.SIG_DFL)
    chdir("/")
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 60)
    for name in ("fork", "getpid", "_exit", "chdir", "close", "getcwd"):
        setattr(os, name, None)
    json.dumps = time.process_time = None
    return float(not any(found))


def kills_its_worker_once(answer, gold, metadata):
    flag = pathlib.Path(metadata["flag"])
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return right(answer, gold, metadata)


def kills_its_worker(answer, gold, metadata):
    os.kill(os.getpid(), signal.SIGKILL)


def hangs_on(answer, gold, metadata):
    """Sleeps on the answers that are named, and where the file is, on all of them."""
    if answer in metadata.get("on", ()) or os.path.exists(metadata.get("down", "")):
        time.sleep(3600)
    return right(answer, gold, metadata)


def holds_the_line(answer, gold, metadata):
    """Leaves, but a child that no hook of Python knows keeps the worker's socket."""
    if ctypes.CDLL(None).fork() == 0:
        time.sleep(3600)
    os._exit(0)


def huge(answer, gold, metadata):
    return 1e308
