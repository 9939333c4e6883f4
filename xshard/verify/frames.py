"""Source lines of HLO instructions, from either form of metadata.

Older XLA writes `source_file="train.py" source_line=7` on each instruction. Newer XLA writes
`stack_frame_id=12` and tables at the top of the module:

    FileNames          1 "train.py"
    FunctionNames      1 "loss"
    FileLocations      3 {file_name_id=1 function_name_id=1 line=7 end_line=7 ...}
    StackFrames        12 {file_location_id=3 parent_frame_id=9}

`parent_frame_id` is printed one too high: roots are 1, and frame 12 above was called from frame 8.
A text in which the first frame's parent is 0 is read as it stands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")

_NAME = re.compile(r'(\d+) "(.*)"')
_LOCATION = re.compile(r"(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)")
_FRAME = re.compile(r"(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?")
_FRAME_ID = re.compile(r"stack_frame_id=(\d+)")
_FILE = re.compile(r'source_file="([^"]*)"(?: source_line=(\d+))?')
_LIBRARY = re.compile(
    r"[/\\](?:site|dist)-packages[/\\](?:jax|jaxlib|flax|optax|orbax|chex|equinox|haiku)[/\\]"
    r"|[/\\]lib[/\\]python3\.\d+[/\\](?!(?:site|dist)-packages)"
)
_XSHARD = str(Path(__file__).resolve().parents[1])


@dataclass(slots=True)
class SourceTables:
    """The tables at the top of a module, by id; filled line by line."""

    files: dict[int, str] = field(default_factory=dict[int, str])
    locations: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    frames: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])

    def add(self, table: str, line: str) -> None:
        """Take one row of `table`; rows of other forms are passed over."""
        if table == "FileNames" and (match := _NAME.match(line)):
            self.files[int(match[1])] = match[2]
        elif table == "FileLocations" and (match := _LOCATION.match(line)):
            self.locations[int(match[1])] = (int(match[2]), int(match[3]))
        elif table == "StackFrames" and (match := _FRAME.match(line)):
            self.frames[int(match[1])] = (int(match[2]), int(match[3] or 0))

    def source(self, line: str) -> str:
        """The innermost frame of the user's code as "file:line"; "" when nothing is known."""
        if match := _FRAME_ID.search(line):
            stack = self.stack(int(match[1]))
            return next((f for f in stack if not is_library(f)), stack[0] if stack else "")
        if match := _FILE.search(line):
            return f"{match[1]}:{match[2]}" if match[2] else match[1]
        return ""

    def stack(self, frame_id: int) -> list[str]:
        """A frame and its callers as "file:line", innermost first."""
        shift = 1 if self.frames.get(1, (0, 0))[1] == 1 else 0
        stack: list[str] = []
        while frame_id in self.frames and len(stack) < len(self.frames):
            location, parent = self.frames[frame_id]
            file, line = self.locations.get(location, (0, 0))
            stack.append(f"{self.files.get(file, '?')}:{line}")
            frame_id = parent - shift
        return stack


def is_library(file: str) -> bool:
    """Whether a file is of JAX, a library on top of it, Python's own, or of this package."""
    return file.startswith(_XSHARD) or _LIBRARY.search(file) is not None
