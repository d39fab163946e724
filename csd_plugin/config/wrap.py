"""`basicsr wrap`: from a stock BasicSR training file to one that trains a student of its network."""

import argparse
import copy
import sys
from collections.abc import Mapping, MutableMapping
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from csd_plugin.archs.cssr_arch import CSSRNet
from csd_plugin.config.load import YAML_SUFFIXES, read_options
from csd_plugin.config.preflight import check_options
from csd_plugin.errors import OptionError

_MODELS = {
    "SRModel": "CSDModel",
    "SwinIRModel": "CSDModel",
    "VideoBaseModel": "CSDVideoModel",
    "EDVRModel": "CSDVideoModel",
    "VideoRecurrentModel": "CSDVideoRecurrentModel",
}
_LAMBDA_C = 0.784
_NEGATIVES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `basicsr wrap`."""
    parser.epilog = "example: basicsr wrap -opt train_EDSR.yml --width 0.25 -o csd_EDSR.yml"
    parser.add_argument("-opt", required=True, type=Path, metavar="FILE", help="stock training file (YAML)")
    parser.add_argument("--width", required=True, type=float, nargs="+", help="channels of the student, in (0, 1)")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")


def run(args: argparse.Namespace) -> None:
    """Write the file and say what was changed.

    Raises:
        OptionError: the file is none that can be wrapped, its network cannot be split, or the output is in the way.
    """
    if args.output.suffix not in YAML_SUFFIXES:
        raise OptionError(f"expected a name that ends with .yml, got {args.output} (option --output)")
    if args.output.exists() and not args.overwrite:
        raise OptionError(f"{args.output} exists: name another output or add --overwrite")
    read_options(args.opt)
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 10_000
    try:
        options = yaml.load(args.opt.read_text(encoding="utf-8"))
    except YAMLError as error:
        raise OptionError(f"{args.opt}: {' '.join(str(error).split())}") from None
    changes = wrap(options, args.width)
    text = StringIO()
    yaml.dump(options, text)
    partial = args.output.with_name(f".partial_{args.output.name}")
    partial.write_text(text.getvalue(), encoding="utf-8")
    try:
        merged = read_options(partial)
        check_options(merged, is_train=True)
        CSSRNet.from_options(_without_missing_files(merged["network_g"]))
        partial.replace(args.output)
    finally:
        partial.unlink(missing_ok=True)
    sys.stdout.write("".join(f"{change}\n" for change in [*changes, f"written to {args.output}"]))


def wrap(options: MutableMapping[str, Any], widths: list[float]) -> list[str]:
    """Turn the options of a stock run into those of a CSD run, in place.

    Args:
        options: a parsed option file; comments that a round-trip parser attached stay.
        widths: ratios of the students' channels.

    Returns:
        One line for each change.

    Raises:
        OptionError: the file is not for training with one of BasicSR's models that have a pixel loss.
    """
    stock = options.get("model_type")
    if stock not in _MODELS or "_base_" in options:
        raise OptionError(
            f"expected a whole file with model_type {' or '.join(_MODELS)}, got {stock!r} (option model_type)"
        )
    train = options.get("train") or {}
    if not train.get("pixel_opt") or train.get("perceptual_opt"):
        raise OptionError("expected a pixel loss and no other (options train:pixel_opt, train:perceptual_opt)")
    options["model_type"] = _MODELS[stock]
    changes = [f"model_type: {stock} -> {options['model_type']}"]
    changes.append(f"name: {options['name']} -> csd_{options['name']}")
    options["name"] = f"csd_{options['name']}"
    changes.append(_nest_network(options, widths))
    changes += _add_losses(train, options["datasets"].get("train") or {}, options["model_type"])
    for phase, dataset in options["datasets"].items():
        if "use_flip" in dataset:
            dataset["use_hflip"] = dataset.pop("use_flip")
            changes.append(f"datasets:{phase}:use_flip -> use_hflip, the name that BasicSR reads")
    return changes


def _nest_network(options: MutableMapping[str, Any], widths: list[float]) -> str:
    backbone = options["network_g"]
    options["network_g"] = CommentedMap(
        {"type": "CSSRNet", "width": widths[0] if len(widths) == 1 else widths, "backbone": backbone}
    )
    return f"network_g: {backbone['type']} is now network_g:backbone of a CSSRNet of width {widths}"


def _add_losses(train: MutableMapping[str, Any], dataset: MutableMapping[str, Any], model: str) -> list[str]:
    train["teacher_opt"] = copy.deepcopy(train["pixel_opt"])
    weight, why = _contrast_weight(train["pixel_opt"], dataset, model)
    train["contrastive_opt"] = CommentedMap(
        {"type": "ContrastiveLoss", "loss_weight": weight, "vgg_weights": "imagenet"}
    )
    train["contrastive_opt"].yaml_add_eol_comment(why, "loss_weight")
    train["positive"] = "teacher"
    others = dataset.get("batch_size_per_gpu", 1) - 1
    from_batch = model == "CSDModel" and others > 0
    train["negatives"] = CommentedMap(
        {"source": "batch", "num": min(_NEGATIVES, others)} if from_batch else {"source": "pool", "num": _NEGATIVES}
    )
    return [
        "train:teacher_opt: a copy of pixel_opt (lambda_T)",
        f"train:contrastive_opt: ContrastiveLoss with loss_weight {weight} (lambda_C), {why}",
        f"train:negatives: {dict(train['negatives'])}",
    ]


def _contrast_weight(
    pixel: MutableMapping[str, Any], dataset: MutableMapping[str, Any], model: str
) -> tuple[float, str]:
    """lambda_C for the scale of the pixel loss, and the reason in words."""
    if pixel.get("reduction", "mean") != "sum":
        return _LAMBDA_C, "200 / 255, for pixels in 0..1"
    frames = max(dataset.get("num_frame", 1), 1) if model == "CSDVideoRecurrentModel" else 1
    values = dataset.get("batch_size_per_gpu", 1) * frames * 3 * dataset["gt_size"] ** 2
    return round(_LAMBDA_C * values), f"200 / 255 times the {values} values that the pixel loss sums"


def _without_missing_files(network: Mapping[str, Any]) -> dict[str, Any]:
    """The same network built without the weights (of an optical flow) that have not been downloaded yet."""
    backbone = {
        key: None if key.endswith("_path") and isinstance(value, str) and not Path(value).is_file() else value
        for key, value in network["backbone"].items()
    }
    return {**network, "backbone": backbone}
