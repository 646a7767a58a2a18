"""Text: a small causal transformer with ReLU feed-forward layers, on Python's own documentation.

    python sample_models/text.py --dying --checkpoint text.pt --recording run.reludiag

It predicts the next character of the language reference that ships in `pydoc_data.topics`.
"""

import math
from functools import cache
from pydoc_data.topics import topics
from typing import Any

import torch
from run import Attach, attached, main, seeded, unwatched
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

HEALTHY = {"lr": 2e-3}
DYING = {"lr": 0.2}
CONTEXT = 64  # characters
_ALPHABET = "\n" + "".join(chr(code) for code in range(32, 127))
_HELD_OUT = 0.1  # share of the text, at its end


class Layer(nn.Module):
    """Attention, then a ReLU feed-forward network four times as wide; `[batch, token, width]`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.relu, self.down = (
            nn.Linear(width, 4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Both parts add to what comes in."""
        batch, tokens, width = x.shape
        parts = self.query_key_value(self.norm1(x))
        parts = parts.view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(self.relu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """`[batch, token]` character codes to scores of the next one, `[batch, token, character]`."""

    def __init__(self, width: int = 64, layers: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.characters = nn.Embedding(len(_ALPHABET), width)
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(_ALPHABET))

    def forward(self, codes: Tensor) -> Tensor:
        """Scores of each next character."""
        x = self.characters(codes) + self.places[: codes.shape[1]]
        return self.head(self.norm(self.layers(x)))


def build(seed: int | None = None) -> nn.Module:
    """A transformer with fresh weights."""
    with seeded(seed):
        return Transformer()


@cache
def _text() -> tuple[Tensor, Tensor]:
    """Character codes of the training part and of the part held out."""
    code = {character: index for index, character in enumerate(_ALPHABET)}
    text = "\n".join(topics[name] for name in sorted(topics))
    codes = torch.tensor([code[character] for character in text if character in code])
    split = int(len(codes) * (1 - _HELD_OUT))
    return codes[:split], codes[split:]


def batches(count: int = 512, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    """Held-out stretches of 64 characters, with the characters that follow each."""
    codes = _text()[1]
    starts = torch.linspace(0, len(codes) - CONTEXT - 1, count).long()
    stretches = codes[starts.unsqueeze(1) + torch.arange(CONTEXT + 1)]
    return [(part[:, :-1], part[:, 1:]) for part in stretches.split(size)]


def probe() -> Tensor:
    """256 stretches of the training text, on which a recording judges the units."""
    codes = _text()[0]
    return codes[: 256 * CONTEXT].view(256, CONTEXT)


def fit(
    model: nn.Module,
    *,
    lr: float = 2e-3,
    steps: int = 500,
    batch_size: int = 32,
    seed: int = 0,
    attach: Attach = unwatched,
) -> dict[str, float]:
    """Train with Adam; returns the bits per character on the text held out."""
    codes = _text()[0]
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    with attach(model, optimizer):
        for _ in range(steps):
            last = len(codes) - CONTEXT - 1
            starts = torch.randint(0, last, (batch_size, 1), generator=generator)
            stretch = codes[starts + torch.arange(CONTEXT + 1)]
            scores = model(stretch[:, :-1])
            loss = cross_entropy(scores.flatten(0, 1), stretch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    return {"bits_per_character": bits_per_character(model), "loss": loss.item()}


def train(trial: Any) -> dict[str, float]:
    """What an experiment varies, `reludiag sweep` or `replay`: by itself, the run that dies."""
    model = trial.init(build(trial.seed))
    lr = trial.lr(DYING["lr"])
    return fit(model, lr=lr, seed=trial.seed, attach=attached(trial, probe()))


@torch.no_grad()
def bits_per_character(model: nn.Module) -> float:
    """Mean over the held-out stretches of `batches()`."""
    losses = [cross_entropy(model(x).flatten(0, 1), y.flatten()) for x, y in batches()]
    return float(torch.stack(losses).mean()) / math.log(2)


def bigram_bits() -> float:
    """What a table of character pairs reaches on the same text: the baseline."""
    training, held_out = _text()
    size = len(_ALPHABET)
    pairs = (training[:-1] * size + training[1:]).bincount(minlength=size**2).view(size, size)
    probabilities = (pairs + 0.1) / (pairs + 0.1).sum(1, keepdim=True)
    return float(-probabilities[held_out[:-1], held_out[1:]].log2().mean())


if __name__ == "__main__":
    main(build, fit, probe, HEALTHY, DYING)
