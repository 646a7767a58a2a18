"""What examining deaths adds to a DQN on pixels.

Method: one process, one thread. The same training runs in turn: bare, bare again (A/A, which shows
the noise), and with a Monitor that examines no deaths, those that fit the default share of the
time, and all. Its replay memory holds frames of a ball that falls through 42 x 42 pixels, drawn
beforehand, so that acting costs nothing; the network is that of Mnih et al. (2015) for smaller
frames. Units die in most of the windows of 50 steps. The probe is 1,024 frames. The columns are the
time of a step on the processor, the mean over the run with its snapshots, and its ratio to bare;
the windows in which units died; and of the deaths in them, those that were examined. The seconds
that are always allowed are set to 1 here, so that a run of a minute shows what one of an hour
costs.
"""

import argparse
import copy
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from report import Table, write_section
from torch import Tensor, nn
from torch.nn import functional

import reludiag
import reludiag.evidence.budget
from reludiag.recording import read_recording

EVERY, BATCH, MEMORY, SIZE = 50, 32, 4096, 42
RUNS: dict[str, float | None] = {
    "bare": None,
    "bare (A/A)": None,
    "evidence=False": 0.0,
    "the default": 0.05,
    "evidence=1.0": 1.0,
}


def network() -> nn.Module:
    """Of frames `[sample, 1, 42, 42]`; three actions."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU()),
        *(nn.Conv2d(64, 64, 2, 1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(64 * 2 * 2, 256), nn.ReLU(), nn.Linear(256, 3)),
    )


def memory() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Frames, actions, rewards, the frames that followed, and whether the game was over."""
    row, ball = torch.randint(0, SIZE - 2, (MEMORY,)), torch.randint(0, SIZE - 3, (MEMORY,))
    paddle, action = torch.randint(0, SIZE - 6, (MEMORY,)), torch.randint(0, 3, (MEMORY,))
    moved = (paddle + 3 * (action - 1)).clamp(0, SIZE - 6)
    done = (row >= SIZE - 6).float()
    caught = (ball - moved - 1).abs() <= 3
    reward = done * torch.where(caught, 1.0, -1.0)
    return _frames(row, ball, paddle), action, reward, _frames(row + 1, ball, moved), done


def _frames(row: Tensor, ball: Tensor, paddle: Tensor) -> Tensor:
    y, x = torch.arange(SIZE)[:, None], torch.arange(SIZE)
    row, ball, paddle = (place[:, None, None] for place in (row, ball, paddle))
    falls = (y >= row) & (y < row + 3) & (x >= ball) & (x < ball + 3)
    waits = (y >= SIZE - 2) & (x >= paddle) & (x < paddle + 6)
    return (falls | waits).float()[:, None]


def train(evidence: float | None, steps: int, folder: Path) -> tuple[float, int, int, int]:
    """Seconds, windows with deaths, deaths, and those that were examined."""
    torch.manual_seed(0)
    q, replay = network(), memory()
    target = copy.deepcopy(q)
    optimizer = torch.optim.Adam(q.parameters(), lr=3e-3)

    def loop() -> None:
        for step in range(steps):
            if step % 200 == 0:
                target.load_state_dict(q.state_dict())
            drawn = torch.randint(0, MEMORY, (BATCH,))
            state, action, reward, after, done = (part[drawn] for part in replay)
            with torch.no_grad():
                goal = reward + 0.99 * (1 - done) * target(after).amax(1)
            value = q(state).gather(1, action[:, None])[:, 0]
            optimizer.zero_grad()
            functional.smooth_l1_loss(value, goal).backward()
            optimizer.step()

    begun = time.process_time()
    if evidence is None:
        loop()
        return time.process_time() - begun, 0, 0, 0
    path = folder / "run.reludiag"
    settings = {"every": EVERY, "probe": replay[0][:1024], "warn_over": None}
    with reludiag.Monitor(q, optimizer, path=path, overwrite=True, evidence=evidence, **settings):
        loop()
    seconds = time.process_time() - begun
    timeline = reludiag.load(path).timeline
    assert timeline is not None
    by_step = timeline.groupby("step")["died"].sum()
    deaths = read_recording(path).observations.deaths
    examined = sum(death.examined for death in deaths)
    return seconds, int((by_step > 0).sum()), int(by_step.sum()), examined


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description="What examining deaths adds to a DQN on pixels.")
    parser.add_argument("--steps", type=int, default=4_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    reludiag.evidence.budget.ALLOWANCE = 1.0
    table = Table("", "ms/step", "ratio", "windows with deaths", "deaths", "examined")
    bare = 0.0
    with TemporaryDirectory() as folder:
        for name, evidence in RUNS.items():
            seconds, windows, deaths, examined = train(evidence, options.steps, Path(folder))
            bare = bare or seconds
            counts = ("", "", "") if evidence is None else (windows, deaths, examined)
            table.add(
                name,
                f"{1000 * seconds / options.steps:.2f}",
                f"{seconds / bare:.3f}",
                *(f"{count:,}" if count != "" else "" for count in counts),
            )
    write_section("evidence", __doc__ or "", table)


if __name__ == "__main__":
    main()
