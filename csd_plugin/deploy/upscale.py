"""`basicsr upscale`: enlarge images with an exported network."""

import argparse
import glob
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from csd_plugin.config.load import read_options
from csd_plugin.data.pairs import IMAGE_SUFFIXES
from csd_plugin.deploy.formats import load_network
from csd_plugin.deploy.images import Picture, read_picture, write_picture
from csd_plugin.deploy.onnx import load_onnx
from csd_plugin.errors import OptionError
from csd_plugin.evaluation.complexity import count
from csd_plugin.models.inference import self_ensemble
from csd_plugin.models.tiles import OVERLAP, fitting_side, free_memory, retrying, run_in_tiles
from csd_plugin.slicing.widths import backbone_options, build_backbone, example_inputs, size_multiple

_PRECISION = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DEFAULT_MODEL = Path(__file__).parent.parent / "pretrained" / "edsr_16ch_x2.safetensors"


@dataclass(frozen=True)
class Upscaler:
    """A network that is ready to run.

    Attributes:
        network: from (B, C, H, W) to (B, C, scale * H, scale * W), on `device`.
        scale: upsampling factor.
        channels: C.
        multiple: what H and W must be a multiple of.
        bytes_per_pixel: memory for each LR pixel.
        device: where it runs.
        dtype: what it computes in.
    """

    network: Callable[[Tensor], Tensor]
    scale: int
    channels: int
    multiple: int
    bytes_per_pixel: float
    device: torch.device
    dtype: torch.dtype

    def __call__(
        self, colour: Tensor, side: int | None = None, overlap: int = OVERLAP, ensemble: bool = False
    ) -> Tensor:
        """Enlarge an image.

        Args:
            colour: (1, 3, H, W) in 0..1.
            side: of a tile; None chooses by free memory, 0 takes the whole image.
            overlap: LR pixels that tiles see of each other.
            ensemble: mean over 8 flips and rotations.

        Returns:
            (1, 3, scale * H, scale * W) in 0..1 on the CPU.
        """
        x = colour if self.channels == 3 else colour.transpose(0, 1)
        x = x.to(self.device, self.dtype)
        height, width = x.shape[-2:]
        if side is None:
            needed = self.bytes_per_pixel * x.shape[0] * self.dtype.itemsize / 4
            fitting = fitting_side(needed, free_memory(self.device), overlap)
            side = None if fitting + 2 * overlap >= max(height, width) else fitting
        elif side == 0:
            side = None

        def run(tile: int | None) -> Tensor:
            in_tiles = partial(
                run_in_tiles, self.network, scale=self.scale, side=tile, overlap=overlap, multiple=self.multiple
            )
            return self_ensemble(in_tiles, x) if ensemble else in_tiles(x)

        with torch.no_grad():
            output, _ = retrying(run, side, max(height, width))
        return (output if self.channels == 3 else output.transpose(0, 1)).clamp(0, 1)


def load_upscaler(
    path: Path, network_g: Mapping[str, Any] | None = None, device: str = "auto", precision: str = "fp32"
) -> Upscaler:
    """Load a .pth, .safetensors or .onnx file.

    Args:
        path: the file.
        network_g: what a .pth file of BasicSR is of; a file of `basicsr export` says it itself.
        device: `auto`, `cpu`, `cuda` or `mps`.
        precision: `fp32`, `fp16` or `bf16`.

    Raises:
        OptionError: the file cannot be used, or the device is not there.
    """
    if path.suffix == ".onnx":
        if precision != "fp32":
            raise OptionError("an ONNX file has its own precision: export it as onnx-fp16 (option --precision)")
        run, description, multiple = load_onnx(path)
        options = backbone_options(description.network_g)
        x = _one_image(options, path)
        needed = _bytes_per_pixel(build_backbone(options), x)
        return Upscaler(run, description.scale, x.shape[1], multiple, needed, torch.device("cpu"), torch.float32)
    chosen, dtype = _device(device), _PRECISION[precision]
    network, description = load_network(path, network_g)
    options = backbone_options(description.network_g)
    small = _one_image(options, path)
    with torch.no_grad():
        scale = network(small).shape[-1] // small.shape[-1]
    needed = _bytes_per_pixel(network, small)
    network = network.to(chosen, dtype)
    if chosen.type == "cuda":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Upscaler(network, scale, small.shape[1], size_multiple(options), needed, chosen, dtype)


def _one_image(options: Mapping[str, Any], path: Path) -> Tensor:
    """A small input of a network that takes one image."""
    inputs = example_inputs(options)
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].dim() != 4:
        raise OptionError(f"{options['type']} does not take one image ({path})")
    return inputs[0]


def _bytes_per_pixel(network: nn.Module, x: Tensor) -> float:
    """Memory in float32 for each LR pixel: twice that of the tensors, for what kernels work in."""
    return 2 * count(network, tuple(x.shape[1:])).memory / (x.shape[-2] * x.shape[-1])


def _device(name: str) -> torch.device:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(candidate for candidate in ("cuda", "mps", "cpu") if available[candidate])
    if not available[name]:
        raise OptionError(f"there is no {name} device here (option --device)")
    return torch.device(name)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `basicsr upscale`."""
    parser.epilog = "example: basicsr upscale photos -o enlarged --model csd_rcan_x4_0.5.safetensors"
    parser.add_argument("input", help="image, folder of images, or a pattern such as 'photos/*.jpg'")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file, or folder for several images")
    parser.add_argument("--model", type=Path, help=f".pth, .safetensors or .onnx file (default: {DEFAULT_MODEL.stem})")
    parser.add_argument("--network", type=Path, metavar="FILE", help="option file that says what a bare .pth is of")
    parser.add_argument("--suffix", default=".png", help="format of the files in a folder (default: .png)")
    parser.add_argument(
        "--tile", type=int, metavar="PX", help="side of tiles in LR pixels; 0: none (default: by memory)"
    )
    parser.add_argument(
        "--overlap", type=int, default=OVERLAP, metavar="PX", help=f"LR pixels around a tile (default: {OVERLAP})"
    )
    parser.add_argument("--ensemble", action="store_true", help="mean over 8 flips and rotations (8 times as slow)")
    parser.add_argument("--precision", choices=_PRECISION, default="fp32", help="arithmetic (default: fp32)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="(default: auto)")
    parser.add_argument("--overwrite", action="store_true", help="replace images that are there")


def run(args: argparse.Namespace) -> None:
    """Enlarge every image that has not been yet. An image that cannot be read does not keep the others from it.

    Raises:
        OptionError: nothing to enlarge, a model that cannot be used, or images that could not be read.
    """
    jobs = _jobs(args)
    for option in ("tile", "overlap"):
        if (getattr(args, option) or 0) < 0:
            raise OptionError(f"expected 0 or more, got {getattr(args, option)} (option --{option})")
    if args.suffix.lower() not in IMAGE_SUFFIXES:
        raise OptionError(f"expected one of {', '.join(sorted(IMAGE_SUFFIXES))}, got {args.suffix!r} (option --suffix)")
    to_do = [(source, target) for source, target in jobs if args.overwrite or not target.exists()]
    if len(to_do) < len(jobs):
        sys.stdout.write(f"{len(jobs) - len(to_do)} of {len(jobs)} are there already (--overwrite replaces them)\n")
    if not to_do:
        return
    if args.model is None:
        sys.stdout.write(f"model: {DEFAULT_MODEL.stem}, for research use (see csd_plugin/pretrained/README.md)\n")
    model = args.model or DEFAULT_MODEL
    upscaler = load_upscaler(model, _network_block(args.network), args.device, args.precision)
    failed: list[str] = []
    for source, target in tqdm(to_do, unit="image", disable=None):
        try:
            picture = read_picture(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_picture(target, _enlarge(upscaler, picture, args), picture)
        except (OptionError, MemoryError) as error:
            failed.append(f"{source}: {error}" if isinstance(error, MemoryError) else str(error))
    if failed:
        others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise OptionError(f"{failed[0]}{others}")
    sys.stdout.write(f"{len(to_do)} written to {args.output}\n")


def _enlarge(upscaler: Upscaler, picture: Picture, args: argparse.Namespace) -> Tensor:
    return upscaler(picture.colour, args.tile, args.overlap, args.ensemble)


def _network_block(path: Path | None) -> Mapping[str, Any] | None:
    if path is None:
        return None
    block = read_options(path).get("network_g")
    if not isinstance(block, Mapping) or "type" not in block or block["type"] == "CSSRNet":
        raise OptionError(f"{path}: expected network_g of a stock network (option --network)")
    return block


def _jobs(args: argparse.Namespace) -> list[tuple[Path, Path]]:
    """Each image and where it goes."""
    source = Path(args.input)
    if source.is_file():
        is_file = args.output.suffix.lower() in IMAGE_SUFFIXES and not args.output.is_dir()
        return [(source, args.output if is_file else args.output / f"{source.stem}{args.suffix}")]
    if source.is_dir():
        found = sorted(source.iterdir())
    else:
        found = [Path(name) for name in sorted(glob.glob(args.input, recursive=True))]
        if not found:
            raise OptionError(f"no such file or folder: {args.input}")
    images = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if not images:
        raise OptionError(f"no images in {args.input}")
    targets = [args.output / f"{path.stem}{args.suffix}" for path in images]
    if args.output.is_file():
        raise OptionError(f"{len(images)} images need a folder, {args.output} is a file (option -o)")
    if len(set(targets)) < len(targets):
        twice = next(target for target in targets if targets.count(target) > 1)
        raise OptionError(f"several images would be written to {twice}")
    return list(zip(images, targets, strict=True))
