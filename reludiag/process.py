"""Process identity: which process runs a trial or writes a recording, and whether it is gone.

On its own host a process is known by its number and the time it started, for numbers are used
again. Of a process elsewhere only its lease is known, which it renews while it lives.
"""

import functools
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

LEASE = 120.0
"""Seconds without renewal after which a process on another host is regarded as ended."""
RENEWALS = 4
"""Renewals per lease duration, because a disk may stall for a while."""

_SAME_START = 2.0  # seconds: a process's start is counted from boot in ticks, and clocks are set


@dataclass(frozen=True)
class ProcessId:
    """A process, unique over hosts and time."""

    host: str
    pid: int
    started: float
    """Unix time."""


def this_process() -> ProcessId:
    """The current process."""
    return ProcessId(this_host(), os.getpid(), psutil.Process().create_time())


@functools.cache
def this_host() -> str:
    """Name of the host with its boot time; two containers are two hosts."""
    parts = [socket.gethostname()]
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists():
        parts += [boot.read_text().strip(), str(namespace.readlink())]
    return "/".join(parts)


def is_gone(owner: ProcessId, lease: float) -> bool:
    """Whether the process has ended; on another host, whether its `lease` has expired."""
    if owner.host != this_host():
        return time.time() > lease
    try:
        process = psutil.Process(owner.pid)
        ended = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return ended or abs(process.create_time() - owner.started) > _SAME_START
    except psutil.NoSuchProcess:
        return True
