"""How a step grows with the ranks, each with a batch and a core, or a GPU, of its own: `python -m benchmarks.ranks`.

Weak scaling: more ranks work on a larger joined batch, so a step should take as long as one rank's. What it takes
longer is the price of joining gradients, distances and negatives.
"""

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import get_context

from benchmarks.report import report, table
from benchmarks.step import EDSR, Setting, our_step
from csd_plugin.evaluation.timing import measure, peak_memory


def _rank(rank: int, ranks: int, setting: Setting, store: str, results: Any) -> None:
    gpu = torch.cuda.is_available()
    torch.set_num_threads(1)
    if gpu:
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if gpu else "gloo", f"file://{store}", rank=rank, world_size=ranks)
    step = our_step(setting, dist_of=(rank, ranks))
    seconds = measure({"step": step}, rounds=9, warmup=2)["step"]
    memory = peak_memory(step)
    if rank == 0:
        results.put((seconds.median, seconds.spread, memory))
    dist.barrier()
    dist.destroy_process_group()


def measure_ranks(ranks: int, setting: Setting) -> tuple[float, float, float]:
    """Median seconds of a step, their spread, and the peak memory of a rank in MiB."""
    context = get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        processes = [context.Process(target=_rank, args=(i, ranks, setting, store, results)) for i in range(ranks)]
        for process in processes:
            process.start()
        found = results.get(timeout=600)
        for process in processes:
            process.join()
    return found


def main() -> None:
    """Measure one rank and two, and so on while each has a GPU, or else a core, of its own."""
    most = torch.cuda.device_count() if torch.cuda.is_available() else os.cpu_count() or 1
    counts = [n for n in (1, 2, 4, 8) if n <= most]
    setting = replace(Setting(EDSR), negatives=4)
    found = {n: measure_ranks(n, setting) for n in counts}
    rows = [
        [str(n), f"{seconds / found[1][0]:.2f}", f"{memory / found[1][2]:.2f}", f"{spread:.0%}"]
        for n, (seconds, spread, memory) in found.items()
    ]
    text = table(["ranks", "time of a step", "memory of a rank", "spread"], rows)
    text += f"\n\nEach rank has one {'GPU' if torch.cuda.is_available() else 'core'} and a batch of {setting.batch}."
    report("ranks", "Growth with ranks", text, {"ranks": found})


if __name__ == "__main__":
    main()
