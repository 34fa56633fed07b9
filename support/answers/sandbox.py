"""Questions about answers, put to worker processes that may hang, run out of memory or die without harm to the run.

    >>> ask([("x+x", "2x"), ("x+x", "3x")])
    [True, False]

sympy can take for ever (`9^{9^{9^9}}`), eat all memory or overflow the C stack, and nothing inside a process stops
that reliably. So a worker is a process of its own, and has a child to answer, with a limit on CPU time and memory. What
breaks a limit costs the child, which is forked anew; what nothing comes back from costs the worker; and either answer
is wrong. Several workers share a batch.

A worker is this file run as a plain script: unlike fork it inherits no threads of torch, and unlike multiprocessing's
spawn it does not import the caller's `__main__`, so notebooks and scripts without a guard work.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import gc
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

TIME_LIMIT = 1.0  # seconds of a worker's CPU for one question, so that a busy machine does not turn verdicts
# Times as long by the clock, whatever the worker is doing (its start, a second or two, is not counted). With eight busy
# processes on two cores 0.4 seconds of CPU have taken 13 by the clock. Where CPU time has no limit, it is the only one.
PATIENCE = 100 if hasattr(signal, "setitimer") else 10
START_LIMIT = 600.0  # seconds by the clock: a second or two of CPU, of which a busy machine may give little
MEMORY_LIMIT = 2 << 30  # bytes of address space of a worker
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WORKERS = min(CORES, 4)  # each holds about 100 MB
SHARE = 8  # questions that are worth one more worker: its start takes a second, most of them milliseconds

Question = tuple[str, ...]  # (answer, reference): are they the same?; (reference,): can it be parsed?


# --- the caller's side ------------------------------------------------------------------------------------------------


class Pool:
    """At most WORKERS processes, started when they are needed and kept for the next questions."""

    def __init__(self):
        self.idle: list[subprocess.Popen] = []
        self.free = threading.Semaphore(WORKERS)  # a place for a worker that is idle or not yet started

    def ask(self, question: Question) -> bool:
        with self.free:
            worker = self.take()
            reply = _exchange(worker, json.dumps([TIME_LIMIT, *question]) + "\n", PATIENCE * TIME_LIMIT)
            if reply.endswith("\n"):
                self.idle.append(worker)
            else:
                _stop(worker)  # it died, or was killed for its silence, before the line was whole
            return reply == "1\n"

    def take(self) -> subprocess.Popen:
        while self.idle:
            worker = self.idle.pop()  # list.pop and append are atomic: no lock
            if worker.poll() is None:
                return worker
            _stop(worker)
        command, pipe = [sys.executable, os.path.abspath(__file__), "--worker"], subprocess.PIPE
        worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, encoding="ascii")
        if _exchange(worker, "\n", START_LIMIT) != "ready\n":
            _stop(worker)
            raise RuntimeError("the answer checker's worker does not start: is math-verify[antlr4_11_0] installed?")
        return worker


def _exchange(worker: subprocess.Popen, line: str, limit: float) -> str:
    """Send one line and read one; what comes back is not whole if the worker died or was killed at the limit."""
    timer = threading.Timer(limit, worker.kill)  # unlike SIGALRM this works in every thread
    timer.start()
    try:
        worker.stdin.write(line)
        worker.stdin.flush()
        return worker.stdout.readline()
    except OSError:  # broken pipe
        return ""
    except BaseException:  # an interrupt: the reply that is still to come must not answer the next question
        _stop(worker)
        raise
    finally:
        timer.cancel()
        timer.join()  # a kill that is under way hits this worker before it is used again


def _stop(worker: subprocess.Popen) -> None:
    worker.kill()
    worker.communicate()


_pool = Pool()


def ask(questions: list[Question]) -> list[bool]:
    """The workers' verdicts, in the order of the questions."""
    if len(questions) <= SHARE or WORKERS < 2:
        return [_pool.ask(question) for question in questions]
    with concurrent.futures.ThreadPoolExecutor(min(WORKERS, math.ceil(len(questions) / SHARE))) as threads:
        return list(threads.map(_pool.ask, questions))  # an interrupt cancels what has not begun


def stop_workers() -> None:
    while _pool.idle:
        _stop(_pool.idle.pop())


def _forget_workers() -> None:
    global _pool
    _pool = Pool()


atexit.register(stop_workers)
if hasattr(os, "register_at_fork"):  # in a forked child the pipes are the parent's, and so are the replies in them
    os.register_at_fork(after_in_child=_forget_workers)


# --- the worker's side ------------------------------------------------------------------------------------------------


def _take_eval_away() -> None:
    """sympy reads strings with Python's eval. Numbers are all that it has to read here."""
    import sympy.physics.units  # noqa: F401  (sympy would import it in mid-question, and with the help of eval)
    from sympy.parsing import sympy_parser

    from support.answers.symbolic import exact

    sympy_parser.parse_expr = lambda text, **options: exact(text)
    sympy_parser.eval_expr = None


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # no such limit on this system: the time limit remains
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))


def _limit_time(seconds: float) -> None:
    if hasattr(signal, "setitimer"):  # not on Windows, where the parent's patience remains
        signal.setitimer(signal.ITIMER_PROF, seconds)  # a signal nobody handles ends the worker, even inside C


def _serve() -> None:
    """The worker: a line of JSON in, `1` or `0` out, until the parent closes the pipe. Its child answers."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints must not look like a verdict
    _limit_memory()
    logging.disable(logging.CRITICAL)
    gc.disable()  # the collector would go through a million imported objects again and again, and find nothing
    from support.answers.symbolic import same

    same("x^2+1", r"\frac{x}{2}")  # the first question must not pay for what is loaded lazily
    _take_eval_away()
    gc.freeze()
    sys.stdin.buffer.readline()
    replies.write(b"ready\n")
    if not hasattr(os, "fork"):
        return _answer(sys.stdin.buffer, replies.write)
    child = _fork()
    for line in sys.stdin.buffer:
        reply = None
        while reply is None:
            try:
                child.sendall(line)
                reply = child.recv(2) or b"0\n"  # nothing: it has died of this question
            except ConnectionError:  # it had died before it read this one
                child = _fork()
        replies.write(reply)


def _fork() -> socket.socket:
    """A child that answers what comes through this socket; ready in milliseconds, where a worker takes a second."""
    ours, theirs = socket.socketpair()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for it
    if os.fork() == 0:
        try:
            ours.close()
            _answer(theirs.makefile("rb"), theirs.sendall)
        finally:  # also if the worker is gone: its loop is none of the child's
            os._exit(0)
    theirs.close()
    return ours


def _answer(lines: Iterable[bytes], reply: Callable[[bytes], object]) -> None:
    gc.enable()
    for line in lines:
        reply(_verdict(line))


def _verdict(line: bytes) -> bytes:
    from support.answers.symbolic import parse, same

    limit, *question = json.loads(line)
    _limit_time(limit)
    try:
        verdict = same(*question) if len(question) == 2 else parse(*question) is not None
    except Exception:  # RecursionError and MemoryError too: sympy failed, so the answer counts as wrong
        verdict = False
    _limit_time(0)
    return b"1\n" if verdict else b"0\n"


if __name__ == "__main__" and sys.argv[1:] == ["--worker"]:
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    _serve()
