"""Reading training data as a folder and as an LMDB: `python -m benchmarks.data`.

Pairs of patches that one core reads in a second, and the share of its time that a training step spends waiting for them
when a GPU does its work, which takes a given time and leaves the cores to the loader.
"""

import csd_plugin  # noqa: F401  isort: skip  (mends BasicSR, so it comes before it)

import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.utils import get_root_logger

from benchmarks.report import report, table
from csd_plugin.cli import main as basicsr
from csd_plugin.evaluation.timing import measure

_IMAGES, _READS = 12, 96
_BATCH, _STEPS = 16, 24
STEP_SECONDS = (0.4, 0.2, 0.1)
KINDS = {
    "PNG, whole images": ["--format", "png", "--crop-size", "0"],
    "PNG, 480 pixels": ["--format", "png"],
    "LMDB, 480 pixels": [],
    "LMDB, 240 pixels": ["--crop-size", "240", "--step", "120"],
}


def _photographs(folder: Path) -> None:
    """Pictures of the size of DIV2K's with detail at all scales, which PNG cannot compress better than photographs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(_IMAGES):
        image = np.zeros((1356, 2040, 3))
        for level in range(8):
            noise = rng.standard_normal((1356 // 2**level + 2, 2040 // 2**level + 2, 3))
            image += cv2.resize(noise, (2040, 1356), interpolation=cv2.INTER_CUBIC) * 4 * 1.6**level
        cv2.imwrite(str(folder / f"{number:04d}.png"), (image + 128).clip(0, 255).astype(np.uint8))


def main() -> None:
    """Prepare the same pictures in each way and read patches of 192 from them."""
    cv2.setNumThreads(1)
    get_root_logger().setLevel("ERROR")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        _photographs(root / "HR")
        runs: dict[str, Any] = {}
        waits: dict[str, list[float]] = {}
        for kind, flags in KINDS.items():
            out = root / kind.replace(" ", "_").replace(",", "")
            if basicsr(["prepare", str(root / "HR"), str(out), "--name", "set", "--scale", "4", *flags]):
                raise SystemExit(1)
            dataset = _dataset(out, "lmdb" if kind.startswith("LMDB") else "disk")
            runs[kind] = _reader(dataset)
            waits[kind] = [waiting_share(_dataset(out, dataset.io_backend_opt["type"]), s) for s in STEP_SECONDS]
        times = measure(runs, rounds=5, warmup=1)
    rate = {kind: _READS / time.median for kind, time in times.items()}
    rows = [[kind, f"{rate[kind]:.0f}", f"{rate[kind] / rate['PNG, whole images']:.1f}"] for kind in KINDS]
    text = table(["data", "pairs of patches a second and core", "over whole PNG images"], rows)
    head = ["share of a step that waits", *(f"step of {seconds:g} s" for seconds in STEP_SECONDS)]
    text += "\n\n" + table(head, [[kind, *(f"{share:.0%}" for share in waits[kind])] for kind in KINDS])
    text += f"\n\nBatches of {_BATCH} patches of 192 pixels, {_workers()} workers on as many cores."
    report("data", "Reading training data", text, {"pairs_per_second": rate, "waiting_share": waits})


def _workers() -> int:
    return min(os.cpu_count() or 1, 6)


def waiting_share(dataset: Any, step_seconds: float) -> float:
    """Share of the time that a loop over BasicSR's loader waits for its next batch.

    Args:
        dataset: a training set.
        step_seconds: what a step takes on the GPU.
    """
    options = {"phase": "train", "batch_size_per_gpu": _BATCH, "num_worker_per_gpu": _workers(), "pin_memory": False}
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=_BATCH * (_STEPS + 4))
    loader = iter(build_dataloader(dataset, options, num_gpu=1, sampler=sampler, seed=0))
    for _ in range(4):  # the workers start
        next(loader)
    waited, start = 0.0, time.perf_counter()
    for _ in range(_STEPS):
        time.sleep(step_seconds)
        before = time.perf_counter()
        next(loader)
        waited += time.perf_counter() - before
    return waited / (time.perf_counter() - start)


def _dataset(folder: Path, kind: str) -> Any:
    gt, lq = (next(p for p in sorted(folder.iterdir()) if part in p.name) for part in ("HR", "LR"))
    options = {
        "name": "benchmark",
        "type": "PairedImageDataset",
        "dataroot_gt": str(gt),
        "dataroot_lq": str(lq),
        "io_backend": {"type": kind},
        "phase": "train",
        "scale": 4,
        "gt_size": 192,
        "use_hflip": True,
        "use_rot": True,
    }
    return build_dataset(options)


def _reader(dataset: Any) -> Any:
    def read() -> None:
        chosen = random.Random(0)
        for _ in range(_READS):
            dataset[chosen.randrange(len(dataset))]

    return read


if __name__ == "__main__":
    main()
