"""A progress bar of a profile on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Rich

from xshard.profile.run import Progress


class Bar:
    """Shows each `Progress` that it is called with, inside a `with`."""

    def __init__(self, console: Console) -> None:
        what = TextColumn("{task.description}", markup=False)
        columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._rich = Rich(
            *columns, what, console=console, transient=True, disable=not console.is_terminal
        )
        self._task = self._rich.add_task("", total=None)

    def __enter__(self) -> Bar:
        self._rich.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._rich.stop()

    def __call__(self, progress: Progress) -> None:
        """Shows how far it is."""
        done = progress.known + progress.measured + len(progress.failed)
        self._rich.update(
            self._task, total=progress.total, completed=done, description=progress.now[:60]
        )
