"""What building CSSRNet, with its proof, costs beside the stock backbone: `python -m benchmarks.construction`."""

import resource
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch

from csd_plugin import CSSRNet
from csd_plugin.slicing.widths import build_backbone

_ENDS = {"num_in_ch": 3, "num_out_ch": 3}
NETWORKS: dict[str, dict[str, Any]] = {
    "EDSR 64/16": {"type": "EDSR", **_ENDS, "num_feat": 64, "num_block": 16},
    "EDSR 256/32": {"type": "EDSR", **_ENDS, "num_feat": 256, "num_block": 32, "res_scale": 0.1},
    "RCAN 64/10x20": {"type": "RCAN", **_ENDS, "num_feat": 64, "num_group": 10, "num_block": 20},
    "SwinIR-M": {
        "type": "SwinIR",
        "img_size": 48,
        "window_size": 8,
        "depths": [6] * 6,
        "num_heads": [6] * 6,
        "embed_dim": 180,
        "mlp_ratio": 2,
        "upscale": 4,
        "upsampler": "pixelshuffle",
    },
    "BasicVSR": {"type": "BasicVSR", "num_feat": 64, "num_block": 30},
    "BasicVSR++": {"type": "BasicVSRPlusPlus", "mid_channels": 64, "num_blocks": 7},
}
WIDTH = 0.5


def _cost(build: Callable[[], object]) -> tuple[float, float]:
    """Seconds and growth of the peak resident memory in MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    kept = build()
    seconds = time.perf_counter() - start
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    del kept
    return seconds, growth


def _measure(name: str, kind: str) -> tuple[float, float]:
    backbone = NETWORKS[name]
    CSSRNet({"type": "EDSR", **_ENDS, "num_feat": 8, "num_block": 1}, WIDTH)  # imports what torch imports on first use
    if kind == "stock":
        return _cost(lambda: build_backbone(backbone))
    return _cost(lambda: CSSRNet(backbone, WIDTH))


def main() -> None:
    """Each measurement in a process of its own, since the peak of a process does not fall again."""
    context = get_context("spawn")
    lines = [f"{'':15}{'stock s':>9}{'CSSRNet s':>11}{'ratio':>8}{'stock MiB':>11}{'CSSRNet MiB':>13}{'ratio':>8}"]
    for name in NETWORKS:
        results = []
        for kind in ("stock", "cssrnet"):
            with context.Pool(1) as pool:
                results.append(pool.apply(_measure, (name, kind)))
        (s, m), (cs, cm) = results
        lines.append(f"{name:15}{s:9.2f}{cs:11.2f}{cs / s:8.1f}{m:11.0f}{cm:13.0f}{cm / m:8.1f}")
    lines.append(f"torch {torch.__version__}, {torch.get_num_threads()} threads, width {WIDTH}, CPU")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
