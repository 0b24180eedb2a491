"""Bars for steps that take time, one per step, on standard error.

Made by `Output.steps`. It knows steps by name only, not what is done in them.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class StepBars:
    """Progress of named steps, as `qwen_edge.export` reports it.

    Args:
        notice: Writes one line for a person, or nothing when quiet.
        is_drawn: There is a terminal to draw on.
        is_transient: Wipe the bars away at the end; without a terminal, show nothing.

    State:
        On a terminal one bar per step; otherwise one line when a step begins.
    """

    def __init__(
        self, notice: Callable[[str], None], *, is_drawn: bool, is_transient: bool = False
    ) -> None:
        self._notice = notice
        self._is_drawn = is_drawn
        self._is_transient = is_transient
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._seen: set[str] = set()

    def __call__(self, step: str, done: int, total: int) -> None:
        """Report that `done` of `total` is finished; units are the step's own.

        Args:
            step: Name of the step, shown as it is.
            done: How much is finished.
            total: How much there is; 0 when that is not known.
        """
        if not self._is_drawn:
            if step not in self._seen and not self._is_transient:
                self._seen.add(step)
                self._notice(f"{step} …")
            return
        progress = self._start()
        if step not in self._tasks:
            self._tasks[step] = progress.add_task(step, total=total or None)
        progress.update(self._tasks[step], completed=done, total=total or None)

    def close(self) -> None:
        """Give the terminal back."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _start(self) -> "Progress":
        if self._progress is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                Progress,
                TaskProgressColumn,
                TextColumn,
                TimeElapsedColumn,
            )

            self._progress = Progress(
                # A step may be a file's name, which is no markup.
                TextColumn("{task.description:<18}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=self._is_transient,
                # What a block writes there is its result, and goes where the person sent it.
                redirect_stdout=False,
            )
            self._progress.start()
        return self._progress
