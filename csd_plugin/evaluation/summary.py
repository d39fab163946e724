"""`basicsr summary`: what a run of CSDModel has come to, as a table and a picture."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from basicsr.utils import tensor2img

from csd_plugin.archs.cssr_arch import CSSRNet
from csd_plugin.config.load import read_options
from csd_plugin.config.preflight import check_options, csd_model
from csd_plugin.errors import OptionError
from csd_plugin.evaluation.sheet import crop_sheet, most_different_patch
from csd_plugin.evaluation.trained import (
    MACS_AT,
    Method,
    load_network,
    methods_of,
    super_resolved,
    validation_images,
)

_PATCH = 72
_ROWS = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `basicsr summary`."""
    parser.epilog = "example: basicsr summary -opt options/csd_demo.yml"
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
    methods = methods_of(network)
    rows: list[dict[str, np.ndarray]] = []
    for name, lq, hr in validation_images(options):
        outputs = super_resolved(network, lq, options["scale"])
        for method, image in zip(methods.values(), outputs.values(), strict=True):
            method.rate(image, hr, options["scale"])
        if len(rows) < _ROWS:
            rows.append(_crops(name, lq, outputs, hr, methods, options["scale"]))
    picture = args.output or experiment / "summary.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    crop_sheet(rows).save(picture)
    print_table(methods)
    _print_files(network, experiment, args.checkpoint, picture)


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
    size = "x".join(str(n) for n in MACS_AT)
    _write("\n".join([*lines, f"Y channel, mean of {images} held-out images; MACs for one {size} image"]))


def _print_files(network: CSSRNet, experiment: Path, checkpoint: str, picture: Path) -> None:
    students = [experiment / "models" / f"net_g_{label}_{checkpoint}.pth" for label in network.students.values()]
    lines = [f"student for stock BasicSR  {path}" for path in students]
    lines += [f"teacher and student       {experiment / 'models' / f'net_g_{checkpoint}.pth'}"]
    lines += [f"side by side              {picture}"]
    _write("\n".join(lines))


def _write(text: str) -> None:
    sys.stdout.write(f"\n{text}\n")
