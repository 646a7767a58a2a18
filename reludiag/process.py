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
"""Seconds after which a process on another host that was not heard of is taken to be gone."""
RENEWALS = 4
"""Times that a lease is renewed in its length: a disk may stall for a while."""

_SAME_START = 2.0  # seconds: a process's start is counted from boot in ticks, and clocks are set


@dataclass(frozen=True)
class ProcessId:
    """A process, among those of all hosts and of all times."""

    host: str
    pid: int
    started: float
    """Unix time."""


def this_process() -> ProcessId:
    """The process that calls."""
    return ProcessId(this_host(), os.getpid(), psutil.Process().create_time())


@functools.cache
def this_host() -> str:
    """Name of the host since its last boot; two containers of it are two hosts."""
    parts = [socket.gethostname()]
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists():
        parts += [boot.read_text().strip(), str(namespace.readlink())]
    return "/".join(parts)


def is_gone(owner: ProcessId, lease: float) -> bool:
    """Whether the process has ended; elsewhere, whether its `lease` (Unix time) has."""
    if owner.host != this_host():
        return time.time() > lease
    try:
        found = psutil.Process(owner.pid)
        ended = found.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return ended or abs(found.create_time() - owner.started) > _SAME_START
    except psutil.NoSuchProcess:
        return True
