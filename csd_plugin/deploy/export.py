"""`basicsr export`: from a training run to files that others run as they are."""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from csd_plugin.archs.cssr_arch import TEACHER, CSSRNet
from csd_plugin.checkpoint import load_mapping, write_atomically
from csd_plugin.config.experiment import training_run
from csd_plugin.deploy.formats import Description, Saver, save_pth, save_safetensors
from csd_plugin.deploy.onnx import save_onnx
from csd_plugin.deploy.spandrel import save_for_spandrel, spandrel_state
from csd_plugin.errors import OptionError
from csd_plugin.slicing.widths import backbone_options

FORMATS = {
    "pth": ".pth",
    "safetensors": ".safetensors",
    "onnx": ".onnx",
    "onnx-fp16": "_fp16.onnx",
    "spandrel": "_spandrel.safetensors",
}
_PLAIN: dict[str, Saver] = {"pth": save_pth, "safetensors": save_safetensors, "spandrel": save_for_spandrel}


@dataclass(frozen=True)
class _Target:
    """A file to be written."""

    path: Path
    write: Callable[[], object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `basicsr export`."""
    parser.epilog = "example: basicsr export options/csd_rcan_x4.yml --format pth onnx"
    parser.add_argument("source", type=Path, help="option file of the training run, or its folder in experiments/")
    parser.add_argument("--checkpoint", default="latest", help="latest, best, an iteration or a file (default: latest)")
    parser.add_argument("--width", nargs="+", default=["all"], help="of students, or 1 for the teacher (default: all)")
    parser.add_argument(
        "--weights", choices=["auto", "params", "params_ema"], default="auto", help="auto: the moving average, if any"
    )
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=["pth", "safetensors"], help="kinds of files")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="fixed LR size of the ONNX graph")
    parser.add_argument("-o", "--output", type=Path, help="folder (default: experiments/<name>/export)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")


def run(args: argparse.Namespace) -> None:
    """Write the files; none replaces another unless told to.

    Raises:
        OptionError: no such run or checkpoint, a width that it does not have, a file that is there already, or a graph
            that does not do what the network does.
    """
    options, experiment = training_run(args.source)
    network = CSSRNet.from_options(options["network_g"]).eval()
    folder = args.output or experiment / "export"
    targets = []
    for width in _widths(args.width, network):
        exported = _exported(network, width, args, experiment).eval()
        description = Description(network.stock_options(width), int(options["scale"]), width, str(options["name"]))
        targets += _targets(exported, description, folder, network, args, options["datasets"])
    existing = [target.path for target in targets if target.path.exists()]
    if existing and not args.overwrite:
        raise OptionError(f"{existing[0]} is there already: choose another folder, or replace it by --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    for target in targets:
        target.write()
        sys.stdout.write(f"{target.path}\n")


def _widths(wanted: list[str], network: CSSRNet) -> list[float]:
    if wanted == ["all"]:
        return list(network.widths)
    known = {f"{width:g}": width for width in (*network.widths, TEACHER)}
    for text in wanted:
        if text not in known:
            raise OptionError(f"expected some of {', '.join(known)} or all, got {text!r} (option --width)")
    return [known[text] for text in wanted]


def _exported(network: CSSRNet, width: float, args: argparse.Namespace, experiment: Path) -> nn.Module:
    """The stock network at a width with the checkpoint's weights."""
    models = experiment / "models"
    if args.checkpoint == "best":
        if width == TEACHER:
            raise OptionError("best is a student's: choose another checkpoint for the teacher (option --checkpoint)")
        exported = network.export(width)
        _load(exported, models / f"net_g_{network.students[width]}_best.pth", args.weights)
        return exported
    is_file = args.checkpoint.endswith(".pth")
    _load(network, Path(args.checkpoint) if is_file else models / f"net_g_{args.checkpoint}.pth", args.weights)
    return network.export(width)


def _load(network: nn.Module, path: Path, weights: str) -> None:
    if not path.is_file():
        raise OptionError(f"no such checkpoint: {path} (option --checkpoint)")
    content = load_mapping(path, "--checkpoint")
    key = ("params_ema" if "params_ema" in content else "params") if weights == "auto" else weights
    if key not in content:
        raise OptionError(f"{path} has no {key}, only {', '.join(map(str, content))} (option --weights)")
    try:
        network.load_state_dict(content[key])
    except (AttributeError, RuntimeError, TypeError):
        raise OptionError(f"{path} holds no weights of this network (option --checkpoint)") from None


def _targets(
    network: nn.Module,
    description: Description,
    folder: Path,
    net: CSSRNet,
    args: argparse.Namespace,
    datasets: Mapping[str, Any],
) -> list[_Target]:
    stem = f"{description.trained_by}_{description.width:g}"
    targets = []
    for kind in args.format:
        path = folder / f"{stem}{FORMATS[kind]}"
        if kind == "spandrel":
            spandrel_state(backbone_options(description.network_g), network.state_dict())  # refused before a write
        if kind in _PLAIN:
            targets.append(_Target(path, partial(_PLAIN[kind], network, description, path)))
        else:
            inputs = net.example_inputs()
            if len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor) or inputs[0].dim() != 4:
                raise OptionError("only networks that take one image are written as ONNX (option --format)")
            settings = {"multiple": net.size_multiple, "channels": inputs[0].shape[1], "half": kind == "onnx-fp16"}
            size = None if args.size is None else tuple(args.size)
            write_graph = partial(save_onnx, network, description, path, size=size, **settings)
            targets.append(_Target(path, write_graph))
        if kind == "pth":
            test = folder / f"test_{stem}.yml"
            targets.append(_Target(test, partial(_write_test_options, description, path, test, datasets)))
    return targets


def _write_test_options(description: Description, weights: Path, path: Path, datasets: Mapping[str, Any]) -> None:
    """An option file for `basicsr/test.py` of stock BasicSR, with the validation sets of the training run."""
    border = description.scale
    sets = {key: dict(block) for key, block in datasets.items() if key.split("_")[0] == "val"}
    content = {
        "name": path.stem,
        "model_type": "SRModel",
        "scale": description.scale,
        "num_gpu": "auto",
        "manual_seed": 0,
        "datasets": {f"test_{number}": block for number, block in enumerate(sets.values(), start=1)},
        "network_g": dict(description.network_g),
        "path": {"pretrain_network_g": str(weights), "strict_load_g": True, "param_key_g": "params"},
        "val": {
            "save_img": True,
            "suffix": None,
            "metrics": {
                name: {"type": f"calculate_{name}", "crop_border": border, "test_y_channel": True}
                for name in ("psnr", "ssim")
            },
        },
    }
    head = "# Written by basicsr export. Stock BasicSR runs it: python basicsr/test.py -opt THIS FILE\n"
    write_atomically((head + yaml.safe_dump(content, sort_keys=False)).encode(), path)
