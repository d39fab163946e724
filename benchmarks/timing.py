"""Timing things side by side in one process, and writing down what was read."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RESULTS = Path("benchmarks/results")


@dataclass(frozen=True)
class Measurement:
    """Seconds of the rounds of one thing.

    Attributes:
        seconds: one value a round.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / self.median


def measure(runs: Mapping[str, Callable[[], Any]], rounds: int = 7, warmup: int = 2) -> dict[str, Measurement]:
    """Time callables in turns, so that a change of the machine's pace meets all of them.

    Args:
        runs: what to time by name.
        rounds: how often each is timed.
        warmup: rounds before that.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(warmup + rounds):
        for name, run in runs.items():
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: Measurement(tuple(values)) for name, values in seconds.items()}


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> dict[str, Any]:
    """What the figures were read on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(name: str, title: str, text: str, figures: Mapping[str, Any]) -> None:
    """Print a table and write `<name>.json` and `<name>.md` to the results.

    Args:
        name: file name without suffix.
        title: heading.
        text: Markdown.
        figures: what the JSON file holds beside the machine.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    about = machine()
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": about, **figures}, indent=1), encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(f"### {title}\n\n{text}\n", encoding="utf-8")
    sys.stdout.write(f"\n{title}\n\n{text}\n({', '.join(f'{key} {value}' for key, value in about.items())})\n")
    sys.stdout.flush()
