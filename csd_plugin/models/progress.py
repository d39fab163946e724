"""A progress bar for whoever watches a run in a terminal; the log file keeps its lines."""

import logging
import sys
from collections.abc import Mapping
from typing import TextIO

from basicsr.utils import get_root_logger
from tqdm import tqdm


class Progress:
    """Iterations done, time left, and the latest validation results.

    While it is shown, the run's log lines go to the log file and no longer to the terminal; warnings still do. Where
    nobody watches (no terminal, or another rank than the first) it does nothing.

    Args:
        total: iterations of the run.
        wanted: whether to show it at all.
        stream: where to; None is standard error.
    """

    def __init__(self, total: int, wanted: bool = True, stream: TextIO | None = None) -> None:
        self.total = total
        self.stream = stream or sys.stderr
        self.wanted = wanted and self.stream.isatty()
        self._bar: tqdm | None = None
        self._quieted: dict[logging.Handler, int] = {}

    def reach(self, iteration: int) -> None:
        """Show that an iteration is done; the first one that is shown may be any, as in a resumed run."""
        if not self.wanted:
            return
        if self._bar is None:
            self._bar = tqdm(total=self.total, initial=iteration - 1, file=self.stream, unit="it", dynamic_ncols=True)
            self._quieten()
        self._bar.update(iteration - self._bar.n)
        if iteration >= self.total:
            self.close()

    def show(self, results: Mapping[str, float]) -> None:
        """Show validation results, such as the student's and the teacher's PSNR."""
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.2f}" for name, value in results.items()})

    def close(self) -> None:
        """Leave the bar as it is and let log lines through again."""
        if self._bar is not None:
            self._bar.close()
            self._bar, self.wanted = None, False
        for handler, level in self._quieted.items():
            handler.setLevel(level)
        self._quieted = {}

    def _quieten(self) -> None:
        for handler in get_root_logger().handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                self._quieted[handler] = handler.level
                handler.setLevel(logging.WARNING)
