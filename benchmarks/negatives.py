"""The distance to the negatives, with its gradient, beside a broadcast: `python -m benchmarks.negatives`.

`push` is the distance to the negatives alone, `pull and push` with the positive's, which the same pass reads.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.report import report, table
from benchmarks.step import peak_memory
from csd_plugin.evaluation.timing import measure
from csd_plugin.losses.distances import l1_distances

SIZES = {
    "relu1_1, HR 96, B = K = 4": (4, 4, 64, 96),
    "relu2_1, HR 96, B = 8, K = 11": (8, 11, 128, 48),
}
Distances = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def broadcast(student: Tensor, positive: Tensor, negatives: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs in one tensor (B, K, C, H, W)."""
    pairs = torch.abs(negatives[None] - student[:, None]).mean((2, 3, 4))
    return F.l1_loss(student, positive), (pairs * weights).sum()


def in_one_pass(compiled: bool) -> Distances:
    """Ours."""
    return lambda s, p, n, w: l1_distances(s, p, n, w, compiled)


def main() -> None:
    """Time and memory of ours over the broadcast's."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, figures = [], {}
    for name, (batch, num, channels, side) in SIZES.items():
        generator = torch.Generator().manual_seed(0)
        student, positive = (torch.randn(batch, channels, side, side, generator=generator).to(device) for _ in "sp")
        negatives = torch.randn(num, channels, side, side, generator=generator).to(device)
        student.requires_grad_()
        weights = torch.full((batch, num), 1 / batch, device=device)

        def run(distances: Distances, both: bool, args: tuple[Tensor, ...]) -> None:
            args[0].grad = None
            pull, push = distances(*args)
            (pull / push if both else push).backward()

        args = (student, positive, negatives, weights)
        kinds = {"broadcast": broadcast, "ours": in_one_pass(False), "ours, compiled": in_one_pass(True)}
        runs = {
            (kind, both): partial(run, distances, both, args)
            for kind, distances in kinds.items()
            for both in (False, True)
        }
        times = measure({str(key): call for key, call in runs.items()}, rounds=15, warmup=3)
        features = student.numel() * student.element_size() / 2**20
        found: dict[str, Any] = {}
        for kind in kinds:
            gain = {
                both: times[str(("broadcast", both))].median / times[str((kind, both))].median for both in (False, True)
            }
            memory = peak_memory(runs[kind, True]) / features
            found[kind] = {"push": gain[False], "pull and push": gain[True], "memory": memory}
            rows.append([name, kind, f"{gain[False]:.1f}", f"{gain[True]:.1f}", f"{memory:.2f}"])
        figures[name] = found
    head = ["features", "", "push: faster", "pull and push: faster", "peak memory / student's features"]
    report("negatives", "The distance to the negatives", table(head, rows), {"negatives": figures})


if __name__ == "__main__":
    main()
