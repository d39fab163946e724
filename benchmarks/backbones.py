"""The table of supported backbones in docs/backbones.md: `python -m benchmarks.backbones` writes it anew."""

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from csd_plugin import CSSRNet
from csd_plugin.evaluation.complexity import count_parameters
from csd_plugin.slicing.widths import BACKBONES

TABLE = Path(__file__).parent.parent / "docs" / "backbones.md"
WIDTH = 0.5
_ENDS: dict[str, Any] = {"num_in_ch": 3, "num_out_ch": 3}
_SIX = [6] * 6

NETWORKS: dict[str, dict[str, Any]] = {
    "BasicVSR": {"num_feat": 64, "num_block": 30},
    "BasicVSRPlusPlus": {"mid_channels": 64, "num_blocks": 7},
    "CARN": {},
    "ECBSR": {**_ENDS, "num_block": 4, "num_channel": 16, "with_idt": False, "act_type": "prelu", "scale": 4},
    "EDSR": {**_ENDS, "num_feat": 256, "num_block": 32, "res_scale": 0.1},
    "EDVR": {"num_feat": 64},
    "MSRResNet": {},
    "RCAN": {**_ENDS, "num_feat": 64, "num_group": 10, "num_block": 20},
    "RIDNet": {"in_channels": 3, "mid_channels": 64, "out_channels": 3},
    "RRDBNet": {**_ENDS, "num_feat": 64, "num_block": 23, "num_grow_ch": 32},
    "SRVGGNetCompact": {},
    "SwinIR": {
        "img_size": 48,
        "window_size": 8,
        "depths": _SIX,
        "num_heads": _SIX,
        "embed_dim": 180,
        "mlp_ratio": 2,
        "upscale": 4,
        "upsampler": "pixelshuffle",
    },
}

_HEAD = f"""# Backbones

Written by `python -m benchmarks.backbones`: each network is built at a usual size with `width: {WIDTH}`, the
channels of its student are found by lock-step tracing and proved by the embedding invariant. *Gathered* counts the
weights of which the student does not take the first channels; with prefix slices those would be wrong.

| backbone | width arguments | teacher parameters | student parameters | weights | gathered |
|---|---|---|---|---|---|
"""
_TAIL = """
An architecture of your own needs no entry here: name its arguments in `network_g:width_args`.

BasicVSR and BasicVSR++ keep their optical flow and their last layers at full width. BasicVSR++
stands here with its deformable alignment; on a machine without CUDA, BasicSR builds it without. {without} have no
width. In a backbone with batch normalisation each width has statistics and affine parameters of its own.
"""


def row(name: str) -> str:
    """The line of one backbone; building it proves it."""
    with patch("torch.cuda.is_available", return_value=True):  # or BasicSR leaves parts of BasicVSR++ out
        net = CSSRNet({"type": name, **NETWORKS[name]}, WIDTH)
        student = count_parameters(net.export(WIDTH))
    channels = net._students[WIDTH][1].channels
    gathered = sum(any(not np.array_equal(c, np.arange(len(c))) for c in axes) for axes in channels.values())
    arguments = ", ".join(f"`{key}`" for key in BACKBONES[name].width_args)
    return f"| {name} | {arguments} | {count_parameters(net):,} | {student:,} | {len(channels)} | {gathered} |"


def main() -> None:
    """Write the table."""
    without = ", ".join(sorted(name for name, spec in BACKBONES.items() if not spec.width_args))
    rows = "\n".join(row(name) for name in NETWORKS)
    TABLE.write_text(f"{_HEAD}{rows}\n{_TAIL.format(without=without)}", encoding="utf-8")
    sys.stdout.write(f"{rows}\nwritten to {TABLE}\n")


if __name__ == "__main__":
    main()
