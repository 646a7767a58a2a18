"""Pool: keeps worker processes running until every cell of a queue has a result."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from reludiag import errors
from reludiag.errors import ReludiagError, UsageError, UserCodeError
from reludiag.experiments.queue.queue import Cell, Queue, Result
from reludiag.experiments.queue.worker import FAILED, OpenQueue, work
from reludiag.process import ProcessId

Progress = Callable[[int, int], None]
"""Called with the number of finished cells and the number of all cells."""
Check = Callable[[Sequence[tuple[Cell, Result]]], None]
"""Called with all results so far when there are new ones; what it raises ends the runs."""

_NAME = "reludiag worker"
_LOOK = 0.2  # seconds between looks at the queue
_EARLY_DEATHS = 10  # workers that died before running anything: not an accident


def run_all(
    open_queue: OpenQueue,
    spec: str,
    recordings: Path,
    cells: int,
    workers: int | None = None,
    progress: Progress | None = None,
    check: Check | None = None,
) -> None:
    """Run all cells, here and on other machines that share the queue; returns when all are done.

    Workers are spawned, with one torch thread each, as many as there are cores unless `workers`
    says otherwise. A worker that dies is replaced.

    Raises an error that every trial would hit, UsageError if workers cannot start, and what `check`
    raises.
    """
    recordings.mkdir(parents=True, exist_ok=True)
    queue, pool, early = open_queue(), list[_Worker](), 0
    workers, checked = workers or cores(), 0
    try:
        while (unfinished := queue.unfinished()) > 0:
            if check is not None and cells - unfinished > checked:
                checked = cells - unfinished
                check(queue.results())
            if progress is not None:
                progress(cells - unfinished, cells)
            for worker in [worker for worker in pool if not worker.process.is_alive()]:
                pool.remove(worker)
                early += worker.bury(queue)
                if early > _EARLY_DEATHS:
                    raise UsageError(
                        f"{early} worker processes died before they could run a trial; the last "
                        f"one {worker.ending()}. Is there enough memory for {workers} of them? "
                        "Try fewer: workers=1 (--workers 1)"
                    )
            queue.tend([worker.owner for worker in pool if worker.owner is not None])
            while len(pool) < min(workers, unfinished):
                pool.append(_Worker.start(open_queue, spec, recordings, len(pool)))
            wait([worker.process.sentinel for worker in pool], timeout=_LOOK)
            for worker in pool:
                worker.listen()
        if check is not None:
            check(queue.results())
        if progress is not None:
            progress(cells, cells)
        while pool:
            pool.pop().stop()
        queue.tend(())  # a worker may have been stopped in the middle of a claim
    finally:
        for worker in pool:
            worker.stop()
        queue.close()


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_not_a_worker(call: str) -> None:
    """Raise UsageError if a worker that imports the user's file would start workers itself."""
    if multiprocessing.current_process().name.startswith(_NAME):
        raise UsageError(
            f"reludiag.{call} was called while a worker process imported the file; put the "
            f'call under `if __name__ == "__main__":`, so that importing the file does not run it'
        )


@dataclass
class _Worker:
    process: BaseProcess
    messages: Connection
    owner: ProcessId | None = None
    """The message of a worker that is ready to run trials."""

    @classmethod
    def start(cls, open_queue: OpenQueue, spec: str, recordings: Path, index: int) -> "_Worker":
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        # Not a daemon: train may use a DataLoader with its own workers.
        spawned = context.Process(
            target=work, args=(open_queue, spec, recordings, theirs), name=f"{_NAME} {index + 1}"
        )
        spawned.start()
        theirs.close()
        return cls(spawned, ours)

    def listen(self) -> None:
        """Read its messages; raises an error that every trial would hit."""
        try:
            while self.messages.poll():
                message = self.messages.recv()
                if message[0] == FAILED:
                    raise _error(*message[1:])
                self.owner = message[1]
        except (EOFError, OSError):
            return

    def bury(self, queue: Queue) -> int:
        """Handle the cell of a worker that ended; returns 1 if it died before it could run one."""
        self.listen()
        self.process.join()
        if self.owner is not None:
            queue.bury(self.owner, self.ending())
            return 0
        if self.process.exitcode and self.process.exitcode > 0:
            raise UsageError(
                f"a worker process could not start: it {self.ending()}, and stderr shows "
                'why. In a script, call reludiag under `if __name__ == "__main__":`'
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
        """Stop it within a few seconds; its cell runs again when the sweep continues."""
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
