"""The grader's side of the process that runs students' code: what goes in is a call, what comes out is data."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent  # the repository, or a student's folder
GIVEN = ("support", "tools", "tiny")  # what the modules need to run; no part of the assignment
RUNNER = ("runner.py", "calls.py", "seams.py", "jail.py")
SUBMITTED = ("grpo.py", "gepa_loop.py", "verify.py", "p2o.py", "adapters.py")
MEMORY = 4 << 30  # bytes, beyond what the libraries take
LONGEST_REPLY = 64 << 20
PATIENCE = 4  # times a part's processor time, by the clock: for those that sleep, not for a busy machine


class Process:
    """Runs submissions, each job in a child of its own. Started when it is first needed, and again after a failure."""

    def __init__(self):
        self.scratch = Path(tempfile.mkdtemp(prefix="grading-")).resolve()
        self.given = self.scratch / "given"
        ignored = shutil.ignore_patterns("__pycache__", "*.tmp", "*.pt")
        for name in filter(lambda name: (ROOT / name).exists(), GIVEN):
            shutil.copytree(ROOT / name, self.given / name, ignore=ignored)
        for name in RUNNER:
            shutil.copy(HERE / name, self.given / name)
        self.jobs: socket.socket | None = None
        self.locked = True  # was every submission so far locked up?

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def start(self) -> None:
        self.jobs, theirs = socket.socketpair()
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        quiet = {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "HOME": str(self.scratch)}
        quiet |= {"TORCHDYNAMO_DISABLE": "1"}  # nothing compiles, but bitsandbytes would load the compiler
        command = [sys.executable, str(self.given / "runner.py"), str(self.given)]
        with theirs:
            self.running = subprocess.Popen(
                command, stdin=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.scratch,
                env=kept | quiet,
            )  # fmt: skip
        self.jobs.settimeout(600)
        if self.jobs.recv(16) != b"ready\n":
            raise RuntimeError("the process that runs submissions does not start; does `make test` pass?")

    def stop(self) -> None:
        if self.jobs is not None:
            self.jobs.close()
            self.running.kill()
            self.running.wait()
            self.jobs = None

    def folder(self, files: dict[str, str]) -> Path:
        """A new folder with these files, and what was given out beside them."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        for name, source in files.items():
            (folder / name).write_text(source, encoding="utf-8")
        for name in filter(lambda name: (self.given / name).exists(), GIVEN):
            (folder / name).symlink_to(self.given / name)
        return folder

    def replies(self, folder: Path, cases: Iterable[dict], seconds: int) -> Iterator[dict]:
        """The reply to each case: {"output"}, {"unwritten"} or {"error"}; {"died"} is the last one.

        One job at a time: the next one waits until this iterator has ended.
        """
        if self.jobs is None:
            self.start()
        work = Path(tempfile.mkdtemp(dir=self.scratch))
        job = {"given": self.given, "folder": folder, "work": work, "seconds": seconds, "memory": MEMORY}
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self.jobs, [json.dumps(job, default=str).encode()], [theirs.fileno()])
        try:
            end = time.monotonic() + PATIENCE * seconds
            hello = json.loads(line_of(ours, end))
            self.locked &= hello["locked"]
            for case in cases:
                with contextlib.suppress(OSError):  # a process that has ended says so below
                    ours.sendall(json.dumps({"call": case["call"], "inputs": case["inputs"]}).encode() + b"\n")
                line = line_of(ours, end)
                if not line.endswith(b"\n"):
                    yield {"died": self.ended(hello["pid"], seconds)}
                    hello = None
                    return
                yield reply_of(line)
        finally:
            ours.close()
            if hello:
                self.ended(hello["pid"], seconds)
            shutil.rmtree(work, ignore_errors=True)

    def ended(self, pid: int, seconds: int) -> str:
        """End the child if it is still there, and say how it went."""
        self.jobs.settimeout(2)
        try:
            status = json.loads(self.jobs.recv(100))["status"]
        except TimeoutError:
            os.killpg(pid, signal.SIGKILL)
            self.jobs.settimeout(60)
            self.jobs.recv(100)
            return f"it took longer than {PATIENCE * seconds} s"
        if status == -signal.SIGXCPU or status == -signal.SIGKILL:
            return f"it took longer than {seconds} s of processor time"
        return f"the process ended with code {status}"


def line_of(connection: socket.socket, end: float) -> bytes:
    """One line, or what there is of it when the time is up, the process has ended, or it is endless."""
    pieces, length = [], 0
    while length < LONGEST_REPLY and not (pieces and pieces[-1].endswith(b"\n")):
        connection.settimeout(max(0.01, end - time.monotonic()))
        try:
            piece = connection.recv(1 << 16)
        except OSError:
            break
        if not piece:
            break
        pieces.append(piece)
        length += len(piece)
    return b"".join(pieces)


def reply_of(line: bytes) -> dict:
    """What a process said: it may have been a submission, which can say anything."""
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        reply = None
    return reply if isinstance(reply, dict) and reply else {"error": "it answered with something that is no reply"}
