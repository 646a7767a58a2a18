"""Pool: keeps worker processes running until every cell of a queue has its result."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from reludiag import errors
from reludiag.errors import ReludiagError, UsageError, UserCodeError
from reludiag.experiments.queue.queue import Queue
from reludiag.experiments.queue.worker import FAILED, OpenQueue, work
from reludiag.process import ProcessId

Progress = Callable[[int, int], None]
"""Called with the number of cells that have a result, and of all."""

_NAME = "reludiag worker"
_LOOK = 0.2  # seconds between looks at the queue
_EARLY_DEATHS = 10  # workers that died before they could run anything: then it is no accident


def run_all(
    open_queue: OpenQueue,
    spec: str,
    recordings: Path,
    cells: int,
    workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Run all cells, here or wherever else the queue is worked on; returns when all are done.

    Workers are spawned, with one torch thread each, as many as there are cores unless `workers`
    says otherwise. One that dies is buried and replaced.

    Raises what a worker found that every trial would meet; UsageError where workers cannot start.
    """
    recordings.mkdir(parents=True, exist_ok=True)
    queue, pool, early = open_queue(), list[_Worker](), 0
    workers = workers or cores()
    try:
        while (left := queue.unfinished()) > 0:
            if progress is not None:
                progress(cells - left, cells)
            for worker in [worker for worker in pool if not worker.process.is_alive()]:
                pool.remove(worker)
                early += worker.bury(queue)
                if early > _EARLY_DEATHS:
                    raise UsageError(
                        f"{early} worker processes died before they could run a trial, the last "
                        f"one {worker.ending()}. Is there enough memory for {workers} of them? "
                        "Fewer: workers=1 (--workers 1)"
                    )
            queue.tend([worker.owner for worker in pool if worker.owner is not None])
            while len(pool) < min(workers, left):
                pool.append(_Worker.start(open_queue, spec, recordings, len(pool)))
            wait([worker.process.sentinel for worker in pool], timeout=_LOOK)
            for worker in pool:
                worker.listen()
        if progress is not None:
            progress(cells, cells)
    finally:
        for worker in pool:
            worker.stop()
        queue.close()


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_not_a_worker(call: str) -> None:
    """Raise UsageError where a worker, importing the user's file, would start workers itself."""
    if multiprocessing.current_process().name.startswith(_NAME):
        raise UsageError(
            f"reludiag.{call} was called by a file that a worker process imported; expected the "
            f'call under `if __name__ == "__main__":`, so that importing the file runs nothing'
        )


@dataclass
class _Worker:
    process: BaseProcess
    messages: Connection
    owner: ProcessId | None = None
    """As it calls itself when it is ready to run trials."""

    @classmethod
    def start(cls, open_queue: OpenQueue, spec: str, recordings: Path, index: int) -> "_Worker":
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        # No daemon: train may use a DataLoader with workers of its own.
        spawned = context.Process(
            target=work, args=(open_queue, spec, recordings, theirs), name=f"{_NAME} {index + 1}"
        )
        spawned.start()
        theirs.close()
        return cls(spawned, ours)

    def listen(self) -> None:
        """Hear what it says; raises what it found that every trial would meet."""
        try:
            while self.messages.poll():
                message = self.messages.recv()
                if message[0] == FAILED:
                    raise _error(*message[1:])
                self.owner = message[1]
        except (EOFError, OSError):
            return

    def bury(self, queue: Queue) -> int:
        """See to the cell of a worker that ended; 1 if it died before it could run one."""
        self.listen()
        self.process.join()
        if self.owner is not None:
            queue.bury(self.owner, self.ending())
            return 0
        if self.process.exitcode and self.process.exitcode > 0:
            raise UsageError(
                f"a worker process could not start: it {self.ending()}, and said why on the "
                'standard error. In a script, call reludiag under `if __name__ == "__main__":`'
            )
        return 1

    def ending(self) -> str:
        """How it ended, as the end of a sentence."""
        code = self.process.exitcode or 0
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"

    def stop(self) -> None:
        """End it, at the latest in a few seconds; its cell is taken up when the sweep goes on."""
        self.process.terminate()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.messages.close()


def _error(name: str, text: str, user_traceback: str) -> ReludiagError:
    if name == UserCodeError.__name__:
        return UserCodeError(text, user_traceback)
    kind: type[ReludiagError] = getattr(errors, name, ReludiagError)
    return kind(text)
