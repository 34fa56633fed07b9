"""The one exception that is the user's to mend: one line on the screen, exit code 2."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import threading
from collections.abc import Callable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's share of it, or what one file may hold
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
# A text where a file's name is wanted; a file where a folder is wanted; a folder where a file is wanted.
NO_PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR)


class UserError(Exception):
    """Says what is wrong, where, and what to do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a batch system or `kill` sends it: a run stops as after Ctrl-C."""


def exit_code_of(command: Callable, *arguments, resumable: bool = True) -> int:
    """Run the command; 0, or 2 after a UserError or on a full disk, or 130 after Ctrl-C, or 143 after SIGTERM.

    `resumable`: it trains, and takes --resume. Other commands begin anew.
    """
    again = "the same command with --resume goes on with the run" if resumable else "start the same command again"

    def say(line: str) -> int:
        print(f"p2o: {line}", file=sys.stderr)
        return 2  # the exit code of what the user can mend

    if hasattr(sys.stdout, "reconfigure"):  # a notebook's has no such thing, and prints everything
        sys.stdout.reconfigure(errors="replace")  # a Western console of Windows has no Chinese: question marks
    before = _raise_at_sigterm()
    try:
        command(*arguments)
    except KeyboardInterrupt as stop:
        say(f"stopped; {again}")
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    except UserError as error:
        return say(str(error))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):  # torch's, on a CPU
            raise
        return say(f"out of memory; lower --group-size, --sample-batch or --max-response-tokens; {again}")
    except BrokenPipeError:
        if not _nobody_reads_on():
            raise
        return 128 + 13  # as of a program that SIGPIPE ends: `p2o.py --help | head`
    except OSError as error:
        if error.errno in NO_PATH:
            return say(f"{str(error.filename)[:200]}: cannot be opened as a file ({error.strerror})")
        if error.errno not in FULL + FORBIDDEN:
            raise
        if error.errno == errno.EFBIG:
            return say(f"{error}; let files grow (ulimit -f), and {again}")
        cure = "make room on that disk, and" if error.errno in FULL else "once it may be written,"
        return say(f"{error}; {cure} {again}")
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    return 0


def _raise_at_sigterm() -> Callable | int | None:
    """Make SIGTERM raise; returns what it did before. Only the main thread of a process may say so."""
    if threading.current_thread() is not threading.main_thread():
        return None
    owner = os.getpid()

    def stop(number: int, frame: object) -> None:
        if os.getpid() != owner:  # a fork of this process, which its parent ends
            os._exit(128 + number)
        raise Terminated

    return signal.signal(signal.SIGTERM, stop)


def _nobody_reads_on() -> bool:
    """Is standard output a pipe whose other end is closed? Then what Python would still print goes nowhere."""
    if not hasattr(select, "poll"):  # Windows
        return False
    screen = sys.stdout.fileno()
    poll = select.poll()
    poll.register(screen, 0)
    if not poll.poll(0):  # neither an error nor a hang-up
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), screen)
    return True
