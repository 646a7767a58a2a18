"""`make pages`: writes each output, named constant, table of rows and generated page again.

Trains the digits model, and runs all experiments that pages show: about a minute.
"""

import sys
import tempfile
from pathlib import Path

import torch

from docs.generate.blocks import ROOT, written_pages
from docs.generate.constants import with_constants
from docs.generate.pictures import draw
from docs.generate.reference import reference_pages
from docs.generate.stage import Stage
from docs.generate.tables import with_tables


def main() -> None:
    torch.set_num_threads(1)  # sums, and so trainings, are the same however many cores there are
    for page, text in reference_pages().items():
        page.write_text(text, encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        for page in written_pages():
            rewritten = _rewritten(stage, page)
            page.write_text(with_tables(with_constants(rewritten)), encoding="utf-8")
            print(page.relative_to(ROOT))
        for missed in draw(stage):
            print(f"not drawn: {missed}", file=sys.stderr)
    for library in stage.missing:
        print(f"left as it was, for want of {library}: its blocks", file=sys.stderr)


def _rewritten(stage: Stage, page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    changes = [(block.span, output) for block, output in stage.play(page)]
    for (start, end), output in reversed(changes):
        text = text[:start] + output + text[end:]
    return text


if __name__ == "__main__":
    main()
