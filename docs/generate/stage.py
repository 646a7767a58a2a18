"""Stage: a folder in which the code of the pages runs, as it would for a reader.

Everything runs in this process, where torch is imported already; a reader's commands take the time
to import it as well.
"""

import contextlib
import importlib.util
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from docs.generate.blocks import ROOT, Block, blocks

NOT_RUN = frozenset({"make", "mkdir", "pip", "pytest"})
"""Programs that pages may name, and that are not run: make, without doing anything."""
EXPERIMENTS = frozenset({"replay", "sweep"})
"""Commands that train a model several times, in processes of their own."""
_SETTINGS = {"COLUMNS": "80", "GITHUB_STEP_SUMMARY": "summary.md"}


class Stage:
    """The folder, with what ran in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outputs: dict[str, str] = {}
        """Command, or `python`, -> what it last wrote to the standard output."""
        self.missing: list[str] = []
        """Libraries for want of which a block of Python was left out."""
        (folder / "demo").mkdir()
        for name in ("sample_models", "examples", "docs"):
            (folder / name).symlink_to(ROOT / name)

    def play(self, page: Path, experiments: bool = True) -> Iterator[tuple[Block, str]]:
        """Run the blocks of a page; yields each block of output with what it should be.

        Without `experiments` these are left out, and their outputs too.
        """
        names: dict[str, Any] = {"__name__": "__page__"}
        with self.entered():
            for block in blocks(page):
                if block.source is not None:
                    key = " ".join(shlex.split(block.source))
                    if key not in self.outputs and self._runs(key, experiments):
                        self.outputs[key] = self.run(shlex.split(block.source))
                    if key in self.outputs:
                        yield block, block.excerpt(self.outputs[key])
                elif block.language == "sh":
                    for command in block.commands():
                        if self._runs(" ".join(command), experiments):
                            self.outputs[" ".join(command)] = self.run(command)
                elif block.language == "python" and block.included is None:
                    self.outputs.pop("python", None)
                    if library := missing_library(block):
                        self.missing.append(library)
                    else:
                        self.outputs["python"] = self._exec(block.text, names)
                elif block.language == "yaml":  # a step of a workflow
                    for command in re.findall(r"^ *run: (.*)$", block.text, re.MULTILINE):
                        self.run(shlex.split(command))
                elif block.language == "toml":
                    self._read_settings(block.text)

    def run(self, command: list[str]) -> str:
        """What a command writes to the standard output; it must end well."""
        program, *arguments = command
        if program == "python":
            script = Path(arguments[0]).resolve()
            with patch.object(sys, "argv", arguments), patch.object(sys, "path", [*sys.path]):
                sys.path.insert(0, str(script.parent))
                return _captured(lambda: runpy.run_path(str(script), run_name="__main__"))
        assert program == "reludiag", f"{' '.join(command)}: no page may ask for this"
        from reludiag_cli.app import main

        with patch.object(sys, "argv", command), patch.object(sys, "path", [*sys.path]):
            return _captured(main)

    def _exec(self, code: str, names: dict[str, Any]) -> str:
        """What a block of Python writes; tests in it are run, as pytest would."""
        earlier_names = set(names)

        def run_it() -> None:
            exec(code, names)
            for name in [n for n in names if n.startswith("test_") and n not in earlier_names]:
                names[name]()

        return _captured(run_it)

    @staticmethod
    def _runs(command: str, experiments: bool) -> bool:
        program, _, rest = command.partition(" ")
        if program == "python" and rest.startswith("examples/"):
            return False  # each in a test of its own, which knows what it needs
        if program == "make":
            subprocess.run(["make", "-n", *rest.split()], check=True, cwd=ROOT, capture_output=True)
        return program not in NOT_RUN and (experiments or rest.split(" ")[0] not in EXPERIMENTS)

    def _read_settings(self, text: str) -> None:
        """A `[tool.reludiag]` that the command line would refuse is an error."""
        if "reludiag" not in tomllib.loads(text).get("tool", {}):
            return
        project = self.folder / "pyproject.toml"
        project.write_text(text, encoding="utf-8")
        try:
            self.outputs["reludiag config"] = self.run(["reludiag", "config"])
        finally:
            project.unlink()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """In the folder, on a terminal 80 columns wide."""
        previous = Path.cwd()
        os.chdir(self.folder)
        try:
            with (
                patch.dict(os.environ, _SETTINGS),
                patch.object(sys, "path", [*sys.path]),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                yield
        finally:
            os.chdir(previous)


def missing_library(block: Block) -> str | None:
    """The first library that a block of Python imports and that is not here."""
    for line in block.text.splitlines():
        words = line.split()
        if words[:1] in (["import"], ["from"]) and words[1:]:
            library = words[1].split(".")[0]
            if importlib.util.find_spec(library) is None:
                return library
    return None


def _captured(call: Any) -> str:
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        try:
            call()
        except SystemExit as done:
            assert not done.code, f"exit code {done.code}"
    return stream.getvalue()
