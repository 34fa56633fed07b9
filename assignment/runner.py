"""The process that runs students' code. It holds no reference and no expected values, and nothing but data leaves it.

    python runner.py GIVEN          (started by process.py; GIVEN is a folder with the code that was given out)

It imports what everybody needs (torch takes seconds), then waits for jobs on its standard input: a folder with a
submission, a folder to work in, limits, and a socket. For each job it forks a child, and the child alone sees the
submission. It is locked up (jail.py), answers calls on its socket, one line of JSON for each, and ends with it. So no
submission meets another one, nor an earlier part of itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

LAST_LINES = 12  # of a traceback


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
        return json.dumps({"error": f"{type(error).__name__}: {error}", "traceback": "\n".join(lines)})


def serve(job: dict, connection: socket.socket) -> None:
    """The child: locked up, it answers until its socket closes. Each call works in a new folder."""
    import jail

    given, folder, work = Path(job["given"]), Path(job["folder"]), Path(job["work"])
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what a student's code prints is no reply
        os.dup2(quiet, stream)
    sys.path.insert(0, str(folder))
    jail.limit(job["seconds"], job["memory"])
    locked = jail.lock([*jail.system_folders(), given, folder], [work])
    with connection.makefile("rw", encoding="utf-8") as lines:
        print(json.dumps({"locked": locked, "pid": os.getpid()}), file=lines, flush=True)
        for number, line in enumerate(lines):
            place = work / str(number)
            place.mkdir()
            os.chdir(place)
            print(answer(json.loads(line)), file=lines, flush=True)


def main() -> None:
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


if __name__ == "__main__":
    main()
