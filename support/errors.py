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
    _print_what_the_console_has_no_letters_for()
    before = _raise_at_sigterm()
    try:
        command(*arguments)
    except KeyboardInterrupt as stop:
        print(f"p2o: stopped; {again}", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    except UserError as error:
        print(f"p2o: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):  # torch's, on a CPU
            raise
        print(
            f"p2o: out of memory; lower --group-size, --sample-batch or --max-response-tokens; {again}", file=sys.stderr
        )
        return 2
    except BrokenPipeError:
        if not _nobody_reads_on():
            raise
        return 128 + 13  # as of a program that SIGPIPE ends: `p2o.py --help | head`
    except OSError as error:
        if error.errno in NO_PATH:
            print(f"p2o: {str(error.filename)[:200]}: cannot be opened as a file ({error.strerror})", file=sys.stderr)
            return 2
        if error.errno not in FULL + FORBIDDEN:
            raise
        cure = "make room on that disk, and" if error.errno in FULL else "once it may be written,"
        cure = "let files grow (ulimit -f), and" if error.errno == errno.EFBIG else cure
        print(f"p2o: {error}; {cure} {again}", file=sys.stderr)
        return 2
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    return 0


def _say_stopped(kind: type, error: BaseException, trace: object) -> None:
    """Ctrl-C while torch is loaded, which takes seconds: no command has begun that would catch it. One line, too.

    Python then ends the process by SIGINT, which a shell calls 130.
    """
    if issubclass(kind, KeyboardInterrupt):
        print("p2o: stopped; start the same command again", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if os.path.basename(sys.argv[0]) == "p2o.py":  # not in a notebook, or in a program that only imports this
    sys.excepthook = _say_stopped


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


def _print_what_the_console_has_no_letters_for() -> None:
    """A Chinese answer on a Western Windows console (cp1252) is printed as question marks, and is no error."""
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's has no such thing, and prints everything
        sys.stdout.reconfigure(errors="replace")  # stderr does so by itself
