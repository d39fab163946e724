"""What a run has trained, and how it does on the run's validation images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.data import build_dataset
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim
from basicsr.utils import tensor2img

from csd_plugin.archs.cssr_arch import TEACHER, CSSRNet
from csd_plugin.checkpoint import load_mapping
from csd_plugin.data.bicubic import upscale
from csd_plugin.data.pairs import check_paired_dataset
from csd_plugin.errors import OptionError
from csd_plugin.evaluation.complexity import count_macs, count_parameters
from csd_plugin.models.inference import run_padded

MACS_AT = (3, 180, 320)


@dataclass
class Method:
    """A row of the table.

    Attributes:
        name: bicubic, student or teacher.
        psnr: dB on Y of each image, borders of `scale` pixels left out.
        ssim: the same.
        parameters: None for bicubic.
        macs: at 3x180x320; None for bicubic.
    """

    name: str
    parameters: int | None = None
    macs: int | None = None
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)

    def rate(self, image: np.ndarray, hr: np.ndarray, scale: int) -> None:
        """Add the metrics of an image (H, W, 3) uint8 BGR."""
        self.psnr.append(float(calculate_psnr(image, hr, crop_border=scale, test_y_channel=True)))
        self.ssim.append(float(calculate_ssim(image, hr, crop_border=scale, test_y_channel=True)))


def load_network(network_options: Mapping[str, Any], checkpoint: Path) -> CSSRNet:
    """The trained network in evaluation mode, with EMA weights where the file has them.

    Raises:
        OptionError: no such file, or weights of another network.
    """
    if not checkpoint.is_file():
        raise OptionError(f"no such checkpoint: {checkpoint} (train first, or see --checkpoint)")
    network = CSSRNet.from_options(network_options)
    state = load_mapping(checkpoint, "--checkpoint")
    try:
        network.load_state_dict(state.get("params_ema", state["params"]))
    except (KeyError, RuntimeError):
        raise OptionError(f"{checkpoint} holds no weights of this network (option network_g)") from None
    return network.eval()


def methods_of(network: CSSRNet) -> dict[float | None, Method]:
    """Bicubic, the students and the teacher by width, None for bicubic."""
    methods: dict[float | None, Method] = {None: Method("bicubic")}
    for width in (*network.widths, TEACHER):
        exported = network.export(width)
        name = "teacher" if width == TEACHER else f"student {width:g}x"
        methods[width] = Method(name, count_parameters(exported), count_macs(exported, MACS_AT))
    return methods


def validation_images(options: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor, np.ndarray]]:
    """Name, LR tensor (1, 3, h, w) and HR picture (H, W, 3) uint8 BGR of every validation image."""
    found = False
    for phase, dataset in options["datasets"].items():
        if phase.split("_")[0] != "val" or dataset["type"] != "PairedImageDataset":
            continue
        found = True
        check_paired_dataset(dataset, f"datasets:{phase}", options["scale"], training=False)
        for item in build_dataset({**dataset, "phase": "val", "scale": options["scale"]}):
            yield Path(item["lq_path"]).stem, item["lq"][None], tensor2img(item["gt"])
    if not found:
        raise OptionError("missing option datasets:val of type PairedImageDataset")


@torch.no_grad()
def super_resolved(network: CSSRNet, lq: torch.Tensor, scale: int) -> dict[float | None, np.ndarray]:
    """The picture (H, W, 3) uint8 BGR by each method, in the order of `methods_of`."""
    outputs: dict[float | None, np.ndarray] = {None: upscale(tensor2img(lq), scale)}
    for width in (*network.widths, TEACHER):
        outputs[width] = tensor2img(run_padded(partial(network, width=width), network.size_multiple, lq))
    return outputs
