"""Measuring time, side by side, and memory."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


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


def peak_memory(run: Callable[[], Any]) -> float:
    """MiB that a call takes at its peak beyond what was there, warm: on a GPU from its allocator, else allocated."""
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    live = peak = 0
    for event in sorted(_allocations(trace), key=lambda item: item[0]):
        live += event[1]
        peak = max(peak, live)
    return peak / 2**20


def _allocations(trace: Any) -> Iterator[tuple[int, int]]:
    """Time and bytes, negative when freed, of each allocation."""
    for event in trace.profiler.kineto_results.events():
        if event.name() == "[memory]":
            yield event.start_ns(), event.nbytes()
