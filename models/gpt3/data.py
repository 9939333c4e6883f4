"""Real text that needs no download: the Python standard library's own sources, byte by byte.

A token is a byte, so any vocabulary of 256 or more fits. Every tenth file is held out. A batch is a
function of (seed, step) alone: training that resumes at a step sees what it would have seen, and
each process can read just the rows that its devices hold.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np

HELD_OUT_EVERY = 10
"""One file in so many is kept for evaluation."""
_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib"}
_END_OF_FILE = b"\0"


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Tokens of one split, and the batches drawn from them."""

    tokens: np.ndarray
    """uint8 [number of bytes]."""
    seed: int = 0

    def batch(
        self, step: int, batch: int, seq_len: int, rows: slice = slice(None)
    ) -> dict[str, np.ndarray]:
        """The given rows of the global batch of a step.

        Returns:
            "inputs" and "targets", the inputs one token later, each int32 [rows, seq_len].
        """
        draw = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        starts = draw.integers(0, self.tokens.size - seq_len, size=batch)[rows]
        windows = self.tokens[starts[:, None] + np.arange(seq_len + 1)].astype(np.int32)
        return {"inputs": windows[:, :-1], "targets": windows[:, 1:]}


@dataclasses.dataclass(frozen=True)
class Text:
    """A folder's Python files, split by file."""

    train: Corpus
    held_out: Corpus

    @classmethod
    def read(cls, folder: Path | None = None, seed: int = 0) -> Self:
        """Reads `*.py` under the folder in sorted order; by default the standard library.

        Raises:
            ValueError: there are too few files to split.
        """
        folder = folder or Path(os.__file__).parent
        files = list(_python_files(folder))
        if len(files) < HELD_OUT_EVERY:
            raise ValueError(f"{folder} holds {len(files)} Python files, too few to split.")
        held_out = files[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
        kept_out = set(held_out)
        train = [file for file in files if file not in kept_out]
        return cls(Corpus(_tokens(train), seed), Corpus(_tokens(held_out), seed))


def _python_files(folder: Path) -> Iterator[Path]:
    """Sorted by path below the folder, so that two installations agree; tests are left out."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    return (folder / path for path in paths if not _SKIPPED.intersection(path.split("/")[:-1]))


def _tokens(files: list[Path]) -> np.ndarray:
    text = _END_OF_FILE.join(file.read_bytes() for file in files)
    return np.frombuffer(text, np.uint8)
