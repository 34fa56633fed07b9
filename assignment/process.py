"""Students' code runs in a process of its own. What goes in is a call, what comes out is data.

    python process.py GIVEN          (started by `Process` below; GIVEN is a folder with the code that was given out)

Three things stand here, in this order: the lock (what a submission may do), the process that runs submissions (it is
this file, run as a script), and `Process`, the grader's side of it.

The process imports what everybody needs (torch takes seconds), then waits for jobs on its standard input: a folder with
a submission, a folder to work in, limits, and a socket. For each job it forks a child, and only the child sees the
submission. It is locked up, answers calls on its socket, one line of JSON for each, and ends with it. So no submission
meets another one, nor an earlier part of itself. It holds no expected values.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

try:
    import resource
except ImportError:  # Windows, which has no fork either
    sys.exit("the grader needs Linux or macOS; on Windows run it in WSL (HANDOUT.md, How to work)")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent  # the repository, or a student's folder
GIVEN = ("support", "tools", "tiny")  # what the modules need to run; no part of the assignment
RUNNER = ("process.py", "calls.py")
SUBMITTED = ("grpo.py", "gepa_loop.py", "verify.py", "p2o.py", "adapters.py")
MEMORY = 4 << 30  # bytes, beyond what the libraries take
LONGEST_REPLY = 64 << 20
PATIENCE = 4  # times a part's processor time, by the clock: for those that sleep, not for a busy machine
LAST_LINES = 12  # of a traceback

# --------------------------------------------------------------------------------------- the lock, in the child process

# A submission may read what it was given, write into its own folder, and take no more time or memory than it has. On
# Linux the kernel holds it to that (Landlock; no root is needed): other files (since Linux 5.13), TCP (6.7) and signals
# to other processes (6.12) are out of reach, for the process and for all that it starts. Where the kernel has no
# Landlock and the grader is root, as in a grading container, the process becomes another user, who cannot read what
# only root may read.

# linux/landlock.h: rights on files by version of the interface, then those that reading needs
RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}
EXECUTE_READ_LIST, WRITE = 0x0D, 0xFFF7  # all but the making of devices is harmless in a folder of its own
CREATE, ADD_RULE, RESTRICT = 444, 445, 446  # numbers of the system calls, the same on every architecture
NET_ABI, SCOPE_ABI = 4, 6  # first versions that know the network (bind, connect), and signals to other processes
NOBODY = 65534


def _call(number: int, *arguments) -> int:
    return ctypes.CDLL(None, use_errno=True).syscall(number, *arguments)


def lock(readable: list[Path], writable: list[Path], hidden: list[Path], landlock: bool) -> str:
    """From here on, this process sees these folders and no others, or at least not what is hidden.

    Says by what means: "kernel", "user", or "" if there was none.
    """
    if landlock and lock_by_kernel(readable, writable):
        return "kernel"
    return "user" if lock_by_user(writable, hidden) else ""


def lock_by_kernel(readable: list[Path], writable: list[Path]) -> bool:
    abi = _call(CREATE, None, 0, 1) if sys.platform == "linux" else -1
    if abi < 1:
        return False
    handled = RIGHTS[min(abi, 5)]
    attributes = struct.pack("QQQ", handled, 3 * (abi >= NET_ABI), 3 * (abi >= SCOPE_ABI))
    size = 24 if abi >= SCOPE_ABI else 16 if abi >= NET_ABI else 8
    rules = _call(CREATE, attributes, size, 0)
    writable = [*writable, Path(os.devnull)]
    for folders, rights in ((readable, EXECUTE_READ_LIST), (writable, WRITE | EXECUTE_READ_LIST)):
        for folder in filter(Path.exists, folders):
            handle = os.open(folder, os.O_PATH)
            allowed = handled & (rights if folder.is_dir() else rights & 0x4007)  # a file is run, written, read, cut
            _call(ADD_RULE, rules, 1, struct.pack("=Qi", allowed, handle), 0)
            os.close(handle)
    no_new_privileges = 38
    ctypes.CDLL(None, use_errno=True).prctl(no_new_privileges, 1, 0, 0, 0)
    locked = _call(RESTRICT, rules, 0) == 0
    os.close(rules)
    return locked


def lock_by_user(writable: list[Path], hidden: list[Path]) -> bool:
    """Become nobody, if this process is root's; True if nobody can read nothing of what is hidden."""
    if os.geteuid() != 0:
        return False
    for folder in writable:
        os.chown(folder, NOBODY, NOBODY)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    return not any(os.access(path, os.R_OK) for path in hidden)


def limit(seconds: int, memory: int, file_size: int = 256 << 20) -> None:
    """Limits on processor time, on memory beyond what is mapped already, and on the size of a file."""
    mapped = Path("/proc/self/statm")
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if mapped.exists():
        most = int(mapped.read_text().split()[0]) * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def system_folders() -> list[Path]:
    """What Python and its packages are read from."""
    python = {Path(p).resolve() for p in (sys.prefix, sys.base_prefix, *sys.path) if p and Path(p).is_dir()}
    system = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/dev/urandom", "/dev/zero"]
    return [*python, *map(Path, system)]


# ------------------------------------------------------------------------------------ the process that runs submissions


def warm_up(given: Path) -> None:
    """Import what takes long: once, rather than for each job."""
    gc.disable()  # the collector would go through a million imported objects again and again, and find nothing
    sys.path.insert(0, str(given))
    import gepa  # noqa: F401
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    # A model of the same kind brings in what both libraries import only when they are used.
    model = AutoModelForCausalLM.from_pretrained(given / "tiny" / "united" / "model")
    peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear"))
    for file in sorted((given / "support").glob("*.py")):
        if file.stem != "vllm_engine":  # it needs vLLM
            importlib.import_module(f"support.{file.stem}")
    import calls  # noqa: F401

    gc.freeze()
    gc.enable()


def answer(request: dict) -> str:
    """The output of one call as a line of JSON, or what went wrong in it."""
    try:
        import adapters
        import calls

        return json.dumps({"output": calls.CALLS[request["call"]](adapters, **request["inputs"])})
    except NotImplementedError as error:
        return json.dumps({"unwritten": str(error)})
    except BaseException as error:  # exit() and Ctrl-C are a student's mistakes, too
        lines = traceback.format_exc().splitlines()[-LAST_LINES:]
        first = next((n for n, line in enumerate(lines) if line.startswith("  File ")), 0)  # no frame without its place
        return json.dumps({"error": f"{type(error).__name__}: {error}", "traceback": "\n".join(lines[first:])})


def import_below(below: Path) -> None:
    """Import the reference's modules on which part 8 stands. Their files are out of reach from the lock on."""
    sys.path.insert(0, str(below))
    for name in ("verify", "grpo", "gepa_loop"):
        importlib.import_module(name)
    sys.path.remove(str(below))


def serve(job: dict, connection: socket.socket) -> None:
    """The child: locked up, it answers until its socket closes. Each call works in a new folder."""
    given, folder, work = Path(job["given"]), Path(job["folder"]), Path(job["work"])
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what a student's code prints is no reply
        os.dup2(quiet, stream)
    if job["below"]:
        import_below(Path(job["below"]))
    readable = [*system_folders(), given, folder]
    sys.path.insert(0, str(folder))
    limit(job["seconds"], job["memory"])
    locked = lock(readable, [work], [Path(path) for path in job["hidden"]], job["landlock"])
    with connection.makefile("rw", encoding="utf-8") as lines:
        print(json.dumps({"locked": locked, "pid": os.getpid()}), file=lines, flush=True)
        for number, line in enumerate(lines):
            place = work / str(number)
            place.mkdir()
            os.chdir(place)
            print(answer(json.loads(line)), file=lines, flush=True)


def run_jobs() -> None:
    given = Path(sys.argv[1])
    sys.dont_write_bytecode = True
    jobs = socket.socket(fileno=0)
    warm_up(given)
    jobs.send(b"ready\n")
    while True:
        message, handles, *_ = socket.recv_fds(jobs, 65536, 1)
        if not message:
            return
        connection = socket.socket(fileno=handles[0])
        child = os.fork()
        if child == 0:
            jobs.detach()
            try:
                serve(json.loads(message), connection)
            finally:
                os._exit(0)
        connection.close()
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(ProcessLookupError):  # what it has started ends with it
            os.killpg(child, signal.SIGKILL)
        jobs.send(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode() + b"\n")


# ---------------------------------------------------------------------------------------------------- the grader's side


class NotLocked(Exception):
    """This system can lock no process up, and nobody said that it need not."""

    def __str__(self) -> str:
        return (
            "this system cannot lock up a submission: the kernel has no Landlock (Linux 5.13), and the grader is not "
            "root in a container in which only root reads the solution (chmod -R go= on this folder). A submission "
            "could read the solution and all your files. --unlocked grades all the same"
        )


class Process:
    """Runs submissions, each job in a child of its own. Started when it is first needed, and again after a failure."""

    def __init__(self, unlocked: bool = False):
        """`unlocked`: run submissions also where nothing keeps them from this machine's files."""
        self.unlocked = unlocked
        self.scratch = Path(tempfile.mkdtemp(prefix="grading-")).resolve()
        self.scratch.chmod(0o711)  # another user may go through, and list nothing
        self.given = self.scratch / "given"
        ignored = shutil.ignore_patterns("__pycache__", "*.tmp", "*.pt")
        for name in filter(lambda name: (ROOT / name).exists(), GIVEN):
            shutil.copytree(ROOT / name, self.given / name, ignore=ignored)
        for name in RUNNER:
            shutil.copy(HERE / name, self.given / name)
        subprocess.run(["chmod", "-R", "a+rX", str(self.given)], check=True)
        # A solution must not be readable. A student's own folder holds none but his or her own.
        self.hidden = [ROOT / "assignment" / "cases.py", ROOT / "p2o.py"] if HERE.name == "assignment" else []
        self.jobs: socket.socket | None = None
        self.locked = ""  # by what means the last submission was

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def start(self) -> None:
        self.jobs, theirs = socket.socketpair()
        kept = ("PATH", "LANG", "LD_LIBRARY_PATH")
        kept = {name: os.environ[name] for name in kept if name in os.environ}
        quiet = {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "HOME": str(self.scratch)}
        quiet |= {"TORCHDYNAMO_DISABLE": "1"}  # nothing compiles, but bitsandbytes would load the compiler
        command = [sys.executable, str(self.given / "process.py"), str(self.given)]
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
        folder.chmod(0o755)
        for name, source in files.items():
            (folder / name).write_text(source, encoding="utf-8")
        for name in filter(lambda name: (self.given / name).exists(), GIVEN):
            (folder / name).symlink_to(self.given / name)
        return folder

    def replies(self, folder: Path, cases: Iterable[dict], seconds: int, below: Path | None = None) -> Iterator[dict]:
        """The reply to each case: {"output"}, {"unwritten"} or {"error"}; {"died"} is the last one.

        `below`: a folder whose modules the submission stands on, and whose files it cannot read. One job at a time: the
        next one waits until this iterator has ended.
        """
        if self.jobs is None:
            self.start()
        work = Path(tempfile.mkdtemp(dir=self.scratch))
        job = {"given": self.given, "folder": folder, "work": work, "seconds": seconds, "memory": MEMORY}
        hidden = [*self.hidden, *([below] if below else [])]
        job |= {"below": below and str(below), "hidden": list(map(str, hidden))}
        job |= {"landlock": not os.environ.get("NO_LANDLOCK")}
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self.jobs, [json.dumps(job, default=str).encode()], [theirs.fileno()])
        hello = None
        try:
            end = time.monotonic() + PATIENCE * seconds
            hello = json.loads(line_of(ours, end))
            self.locked = hello["locked"]
            if not self.locked and not self.unlocked:
                raise NotLocked
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
    known = ("output", "unwritten", "error", "traceback")
    reply = {name: reply[name] for name in known if name in reply} if isinstance(reply, dict) else {}
    return reply or {"error": "it answered with something that is no reply"}


if __name__ == "__main__":
    run_jobs()
