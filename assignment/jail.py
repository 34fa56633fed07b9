"""What a submission may do: read what it was given, write into its own folder, and no more time or memory than it has.

On Linux the kernel holds it to that (Landlock, since 5.13; no root is needed): other files, other processes and the
network are out of reach, for the process and for all that it starts. Elsewhere only the limits hold, and `lock` says
so: grade strangers' work in a container there.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from pathlib import Path

# linux/landlock.h: rights on files by version of the interface, then those that reading needs
RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}
EXECUTE_READ_LIST, WRITE = 0x0D, 0xFFF7  # all but the making of devices is harmless in a folder of its own
CREATE, ADD_RULE, RESTRICT = 444, 445, 446  # numbers of the system calls, the same on every architecture
NET_ABI, SCOPE_ABI = 4, 6  # first versions that know the network (bind, connect), and signals to other processes


def _call(number: int, *arguments) -> int:
    return ctypes.CDLL(None, use_errno=True).syscall(number, *arguments)


def lock(readable: list[Path], writable: list[Path]) -> bool:
    """From here on, this process sees these folders and no others. False where the kernel cannot do that."""
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
