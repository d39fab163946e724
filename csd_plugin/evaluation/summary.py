"""`basicsr summary`: what a run of CSDModel has come to, as a table and a picture."""

import argparse
import sys
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
from csd_plugin.config.load import read_options
from csd_plugin.config.preflight import check_options, csd_model
from csd_plugin.data.bicubic import upscale
from csd_plugin.data.pairs import check_paired_dataset
from csd_plugin.errors import OptionError
from csd_plugin.evaluation.complexity import count_macs, count_parameters
from csd_plugin.evaluation.sheet import crop_sheet, most_different_patch
from csd_plugin.models.inference import run_padded

_MACS_AT = (3, 180, 320)
_PATCH = 72
_ROWS = 6


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `basicsr summary`."""
    parser.add_argument("-opt", required=True, metavar="FILE", help="option file of the training run")
    parser.add_argument("--checkpoint", default="latest", metavar="ITER", help="iteration (default: latest)")
    parser.add_argument("-o", "--output", type=Path, help="picture (default: experiments/<name>/summary.png)")
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="KEY=VALUE", help="as for training")


def run(args: argparse.Namespace) -> None:
    """Print the table and write the picture.

    Raises:
        OptionError: the option file is none of CSDModel, or has no checkpoint or validation set.
    """
    options = read_options(args.opt, args.force_yml)
    check_options(options, is_train=True)
    if csd_model(options) is None:
        raise OptionError(f"expected CSDModel, got {options['model_type']!r} (option model_type)")
    experiment = Path("experiments") / options["name"]
    checkpoint = experiment / "models" / f"net_g_{args.checkpoint}.pth"
    network = load_network(options["network_g"], checkpoint)
    methods = _methods(network)
    rows: list[dict[str, np.ndarray]] = []
    for name, lq, hr in _validation_images(options):
        outputs = _outputs(network, lq, options["scale"])
        for method, image in zip(methods.values(), outputs.values(), strict=True):
            method.rate(image, hr, options["scale"])
        if len(rows) < _ROWS:
            rows.append(_crops(name, lq, outputs, hr, methods, options["scale"]))
    picture = args.output or experiment / "summary.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    crop_sheet(rows).save(picture)
    print_table(methods)
    _print_files(network, experiment, args.checkpoint, picture)


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


def _methods(network: CSSRNet) -> dict[float | None, Method]:
    methods: dict[float | None, Method] = {None: Method("bicubic")}
    for width in (*network.widths, TEACHER):
        exported = network.export(width)
        name = "teacher" if width == TEACHER else f"student {width:g}x"
        methods[width] = Method(name, count_parameters(exported), count_macs(exported, _MACS_AT))
    return methods


def _validation_images(options: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor, np.ndarray]]:
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
def _outputs(network: CSSRNet, lq: torch.Tensor, scale: int) -> dict[float | None, np.ndarray]:
    outputs: dict[float | None, np.ndarray] = {None: upscale(tensor2img(lq), scale)}
    for width in (*network.widths, TEACHER):
        outputs[width] = tensor2img(run_padded(partial(network, width=width), network.size_multiple, lq))
    return outputs


def _crops(
    name: str,
    lq: torch.Tensor,
    outputs: Mapping[float | None, np.ndarray],
    hr: np.ndarray,
    methods: Mapping[float | None, Method],
    scale: int,
) -> dict[str, np.ndarray]:
    """The patch in which bicubic and the first student differ most: LR, every method, HR."""
    size = min(_PATCH - _PATCH % scale, *hr.shape[:2])
    top, left = (n - n % scale for n in most_different_patch(outputs[None], list(outputs.values())[1], size))
    small = tensor2img(lq)[top // scale : (top + size) // scale, left // scale : (left + size) // scale]
    crops = {f"{name}: LR": small}
    for width, image in outputs.items():
        caption = f"{methods[width].name}  {methods[width].psnr[-1]:.2f} dB"
        crops[caption] = image[top : top + size, left : left + size]
    return {**crops, "HR": hr[top : top + size, left : left + size]}


def print_table(methods: Mapping[float | None, Method]) -> None:
    """Write the table to standard output."""
    lines = [f"{'':14}{'PSNR (dB)':>10}{'SSIM':>9}{'parameters':>13}{'MACs':>11}"]
    for method in methods.values():
        cost = ""
        if method.parameters is not None and method.macs is not None:
            cost = f"{method.parameters:>13,}{method.macs / 1e9:>9.2f} G"
        lines.append(f"{method.name:14}{np.mean(method.psnr):>10.2f}{np.mean(method.ssim):>9.4f}{cost}")
    images = len(next(iter(methods.values())).psnr)
    size = "x".join(str(n) for n in _MACS_AT)
    _write("\n".join([*lines, f"Y channel, mean of {images} held-out images; MACs for one {size} image"]))


def _print_files(network: CSSRNet, experiment: Path, checkpoint: str, picture: Path) -> None:
    students = [experiment / "models" / f"net_g_{label}_{checkpoint}.pth" for label in network.students.values()]
    lines = [f"student for stock BasicSR  {path}" for path in students]
    lines += [f"teacher and student       {experiment / 'models' / f'net_g_{checkpoint}.pth'}"]
    lines += [f"side by side              {picture}"]
    _write("\n".join(lines))


def _write(text: str) -> None:
    sys.stdout.write(f"\n{text}\n")
