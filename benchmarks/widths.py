"""What each further student costs: `python -m benchmarks.widths`.

One step (forward of all widths, L1 of each, one backward) is timed side by side with the stock networks of the same
widths, each with a forward and backward of its own, and with what the multiply-accumulates predict.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.report import table
from benchmarks.step import EDSR
from csd_plugin import CSSRNet
from csd_plugin.evaluation.complexity import count_macs
from csd_plugin.evaluation.timing import measure

STUDENTS = (0.25, 0.5, 0.75)
_BATCH, _SIDE, _ROUNDS = 4, 24, 9


def _step(run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    run(x).backward()


def main() -> None:
    """Print a table of medians over interleaved rounds."""
    x = torch.rand(_BATCH, 3, _SIDE, _SIDE)
    nets = [CSSRNet(EDSR, STUDENTS[: i + 1]).train() for i in range(len(STUDENTS))]
    stock = {w: nets[-1].export(w).train() for w in (1.0, *STUDENTS)}
    macs = {w: count_macs(network, (3, _SIDE, _SIDE)) for w, network in stock.items()}
    runs: dict[str, Callable[[Tensor], Tensor]] = {
        f"{i + 1}": lambda x, net=net: torch.stack([y.abs().mean() for y in net(x).values()]).sum()
        for i, net in enumerate(nets)
    }
    runs |= {f"stock {w:g}": lambda x, network=network: network(x).abs().mean() for w, network in stock.items()}
    times = measure({name: partial(_step, run, x) for name, run in runs.items()}, _ROUNDS)
    median = {name: time.median for name, time in times.items()}
    rows = []
    for i in range(len(STUDENTS)):
        widths = (1.0, *STUDENTS[: i + 1])
        alone = sum(median[f"stock {w:g}"] for w in widths) / median["stock 1"]
        step = median[f"{i + 1}"] / median["stock 1"]
        names = ", ".join(f"{w:g}" for w in widths[1:])
        rows.append([names, f"{step:.2f}", f"{alone:.2f}", f"{sum(macs[w] for w in widths) / macs[1.0]:.2f}"])
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU, medians of {_ROUNDS} rounds"
    head = ["students", "step / teacher alone", "stock networks one by one", "by MACs"]
    sys.stdout.write("\n".join([table(head, rows), f"EDSR 64/16 x4, batch {_BATCH}, LR {_SIDE}; {machine}"]) + "\n")


if __name__ == "__main__":
    main()
