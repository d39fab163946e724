"""Checks before a run starts, so that a mistake costs a line on the terminal and not a folder of outputs."""

import importlib.util
import inspect
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.registry import DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from torch import nn
from torch.utils._pytree import tree_leaves

from csd_plugin.archs.cssr_arch import TEACHER, CSSRNet
from csd_plugin.checkpoint import load_mapping, newest_state
from csd_plugin.config.schema import (
    ClipDatasetOptions,
    CSDOptions,
    DatasetOptions,
    NegativesOptions,
    PairedImageDatasetOptions,
    ValOptions,
    parse,
)
from csd_plugin.data.clips import CLIP_DATASETS, check_clip_dataset
from csd_plugin.data.pairs import check_paired_dataset
from csd_plugin.errors import OptionError, suggestion
from csd_plugin.models.csd_model import CSDModel
from csd_plugin.models.video_models import CSDVideoModel, CSDVideoRecurrentModel

_LAUNCHER_VARIABLES = {"pytorch": "WORLD_SIZE", "slurm": "SLURM_NTASKS"}


def check_launcher(launcher: str) -> None:
    """Refuse a launcher whose environment is not there.

    Raises:
        OptionError: naming the command that sets it up.
    """
    variable = _LAUNCHER_VARIABLES.get(launcher)
    if variable is not None and variable not in os.environ:
        command = {"pytorch": "torchrun --nproc_per_node=N -m csd_plugin train ...", "slurm": "srun"}[launcher]
        raise OptionError(f"{variable} is not set: start with {command} (option --launcher {launcher})")


def csd_model(options: Mapping[str, Any]) -> type[CSDModel] | None:
    """The class behind `model_type` if it is CSDModel or derived from it."""
    model = MODEL_REGISTRY.get(options["model_type"])
    return model if issubclass(model, CSDModel) else None


def check_options(options: Mapping[str, Any], is_train: bool) -> None:
    """Check the option file itself, before BasicSR's parser sees it.

    Files whose `model_type` is not CSDModel or derived from it are BasicSR's or another plugin's business: only what
    every run needs is checked there.

    Args:
        options: the merged option file.
        is_train: whether it is for training or for testing.

    Raises:
        OptionError: unknown, missing or wrong option.
    """
    for key in ("name", "model_type", "num_gpu", "datasets", "network_g", "path", *(("train",) if is_train else ())):
        if key not in options:
            raise OptionError(f"missing option {key}")
    if options["model_type"] not in MODEL_REGISTRY:
        near = suggestion(options["model_type"], MODEL_REGISTRY.keys())
        raise OptionError(f"no model {options['model_type']!r} is registered{near} (option model_type)")
    model = csd_model(options)
    for phase, dataset in options["datasets"].items():
        _check_dataset_block(dataset, f"datasets:{phase}", strict=model is not None)
    if model is None:
        return
    parsed = parse(CSDOptions, options)
    for block in ("train", "logger") if is_train else ():
        if getattr(parsed, block) is None:
            raise OptionError(f"missing option {block}")
    if parsed.train is not None:
        train = parse(model.train_schema, parsed.train, "train")
        for key in ("pixel_opt", "teacher_opt", "distill_opt", "contrastive_opt"):
            _check_loss(getattr(train, key), f"train:{key}")
        _check_optimizer(train.optim_g)
    if parsed.val is not None:
        val = parse(model.val_schema, parsed.val, "val")
        if val.tile is not None and issubclass(model, CSDVideoModel | CSDVideoRecurrentModel):
            raise OptionError("tiles are for images, not for clips (option val:tile)")
        _check_metrics(val, [str(dataset.get("name")) for dataset in parsed.datasets.values()])


def check_run(opt: Mapping[str, Any]) -> None:
    """Check what the options name: devices, files, data and the network. Reads only.

    Args:
        opt: options as BasicSR's parser gives them.

    Raises:
        OptionError: something is missing or does not fit together.
    """
    _check_device(opt)
    _check_logger(opt)
    if _resumes(opt):
        opt = {**opt, "path": {key: value for key, value in opt["path"].items() if key != "pretrain_network_g"}}
    for key, value in opt["path"].items():
        names_file = key.startswith("pretrain_network") or key == "resume_state"
        if names_file and value is not None and not os.path.isfile(value):
            raise OptionError(f"no such file: {value} (option path:{key})")
    for phase, dataset in opt["datasets"].items():
        _check_data(opt, phase, dataset)
    if csd_model(opt) is not None:
        _check_network(opt)
        _check_negatives(opt)
        _check_vgg(opt)
        _check_step(opt)


def _resumes(opt: Mapping[str, Any]) -> bool:
    """Whether the run goes on from a training state, which leaves the networks to start from unused."""
    paths = opt["path"]
    if not opt["is_train"]:
        return False
    if opt["auto_resume"]:
        return newest_state(Path(paths["training_states"]), Path(paths["models"])) is not None
    return paths.get("resume_state") is not None


def _check_dataset_block(dataset: Mapping[str, Any], where: str, strict: bool) -> None:
    if not isinstance(dataset, Mapping) or "type" not in dataset:
        raise OptionError(f"missing option {where}:type")
    if dataset["type"] not in DATASET_REGISTRY:
        near = suggestion(dataset["type"], DATASET_REGISTRY.keys())
        raise OptionError(f"no data set type {dataset['type']!r} is registered{near} (option {where}:type)")
    paired = dataset["type"] == "PairedImageDataset"
    if strict and (paired or dataset["type"] in CLIP_DATASETS):
        schema: type[DatasetOptions] = PairedImageDatasetOptions if paired else ClipDatasetOptions
        parsed = parse(schema, dataset, where)
        if where.split(":")[1].split("_")[0] == "train" and parsed.gt_size is None:
            raise OptionError(f"missing option {where}:gt_size")


def _check_loss(block: Mapping[str, Any] | None, where: str) -> None:
    if block is None:
        return
    name = block.get("type")
    if name not in LOSS_REGISTRY:
        near = suggestion(str(name), LOSS_REGISTRY.keys())
        raise OptionError(f"no loss {name!r} is registered{near} (option {where}:type)")
    _check_keywords(LOSS_REGISTRY.get(name), block, where)


def _check_optimizer(block: Mapping[str, Any]) -> None:
    cls = getattr(torch.optim, str(block.get("type")), None)
    if cls is None or "lr" not in block:
        raise OptionError(f"expected the name of a torch.optim class and lr, got {dict(block)} (option train:optim_g)")
    _check_keywords(cls, block, "train:optim_g")


def _check_keywords(target: Any, block: Mapping[str, Any], where: str) -> None:
    """Every key of the block is a parameter of what it builds."""
    signature = inspect.signature(target)
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return
    for key in block:
        if key != "type" and key not in signature.parameters:
            raise OptionError(f"unknown option {where}:{key}{suggestion(key, signature.parameters)}")


def _check_metrics(val: ValOptions, datasets: Sequence[str]) -> None:
    metrics = val.metrics or {}
    for key, block in metrics.items():
        if block.get("type") not in METRIC_REGISTRY:
            near = suggestion(str(block.get("type")), METRIC_REGISTRY.keys())
            raise OptionError(f"no metric {block.get('type')!r} is registered{near} (option val:metrics:{key}:type)")
    if val.best_metric is not None and val.best_metric not in metrics:
        raise OptionError(f"{val.best_metric!r} is none of val:metrics (option val:best_metric)")
    if val.best_dataset is not None and val.best_dataset not in datasets:
        raise OptionError(f"no data set is named {val.best_dataset!r} (option val:best_dataset)")


def _check_device(opt: Mapping[str, Any]) -> None:
    gpus = torch.cuda.device_count()
    if not opt["dist"] and opt["num_gpu"] > 1 and csd_model(opt) is not None:
        raise OptionError(
            f"num_gpu {opt['num_gpu']} needs one process a GPU: torchrun --nproc_per_node={opt['num_gpu']} "
            "-m csd_plugin train -opt FILE --launcher pytorch (option num_gpu)"
        )
    if opt["num_gpu"] > gpus:
        raise OptionError(
            f"num_gpu {opt['num_gpu']} but {gpus} CUDA devices: set 0 for the CPU or auto (option num_gpu)"
        )


def _check_logger(opt: Mapping[str, Any]) -> None:
    wandb = (opt.get("logger") or {}).get("wandb") or {}
    if wandb.get("project") is not None and importlib.util.find_spec("wandb") is None:
        raise OptionError("wandb is not installed: pip install wandb, or set it to ~ (option logger:wandb:project)")


def _check_data(opt: Mapping[str, Any], phase: str, dataset: Mapping[str, Any]) -> None:
    where = f"datasets:{phase}"
    training = dataset["phase"] == "train"
    if dataset.get("persistent_workers") and training and dataset.get("num_worker_per_gpu", 0) == 0:
        raise OptionError(f"persistent_workers needs workers (option {where}:num_worker_per_gpu)")
    if dataset.get("prefetch_mode") == "cuda" and opt["num_gpu"] == 0:
        raise OptionError(f"prefetch_mode cuda needs a GPU: set ~ or cpu (option {where}:prefetch_mode)")
    checks_clips = dataset["type"] in CLIP_DATASETS and csd_model(opt) is not None
    if dataset["type"] != "PairedImageDataset" and not checks_clips:
        return
    if training and dataset["gt_size"] % opt["scale"]:
        raise OptionError(
            f"expected a multiple of scale {opt['scale']}, got {dataset['gt_size']} (option {where}:gt_size)"
        )
    if checks_clips:
        count = check_clip_dataset(dataset, where)
    else:
        count = check_paired_dataset(dataset, where, opt["scale"], training)
    if training and count is not None:
        check_batch(dataset, count, opt["world_size"], where)


def check_batch(dataset: Mapping[str, Any], count: int, world_size: int, where: str = "datasets:train") -> None:
    """Refuse a batch that the data set cannot fill: BasicSR would run 0 iterations and save an untrained network.

    Args:
        dataset: options of the training set.
        count: its number of images.
        world_size: number of ranks.
        where: option path of the data set.

    Raises:
        OptionError: the batch is larger than what one rank gets in an epoch.
    """
    share = math.ceil(count * dataset.get("dataset_enlarge_ratio", 1) / world_size)
    if share < dataset["batch_size_per_gpu"]:
        raise OptionError(
            f"batch of {dataset['batch_size_per_gpu']} images but {share} a rank in the data set: lower it or raise "
            f"dataset_enlarge_ratio (option {where}:batch_size_per_gpu)"
        )


def _check_network(opt: Mapping[str, Any]) -> None:
    """Build the network, which proves its students, and run it once on a small input."""
    with torch.random.fork_rng(devices=[]):
        network = CSSRNet.from_options(opt["network_g"]).eval()
    if opt["path"].get("strict_load_g", True):
        _check_pretrained(network, opt["path"], "pretrain_network_g")
    _check_pretrained(network, opt["path"], "pretrain_network_teacher")
    inputs = network.example_inputs()
    with torch.no_grad():
        output = network(*inputs)
    lq = next(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor))
    _check_kind(opt, lq.dim(), output.dim())
    *_, channels, height, _ = output.shape
    side = lq.shape[-2]
    if height != side * opt["scale"]:
        raise OptionError(
            f"the network enlarges x{height // side} but scale is {opt['scale']} (options scale, network_g:backbone)"
        )
    if (opt.get("train") or {}).get("contrastive_opt") and channels not in (1, 3):
        raise OptionError(
            f"the contrast needs RGB or grey images, the network gives {channels} channels (option network_g:backbone)"
        )
    _check_patch(opt, network, smallest=side if lq.dim() == 5 else 1)
    for phase, dataset in opt["datasets"].items():
        frames = network.options[TEACHER].get("num_frame")
        if frames is not None and dataset["type"] in CLIP_DATASETS and dataset["num_frame"] != frames:
            raise OptionError(
                f"the network takes {frames} frames, got {dataset['num_frame']} (option datasets:{phase}:num_frame)"
            )


def _check_kind(opt: Mapping[str, Any], input_axes: int, output_axes: int) -> None:
    """Images are for CSDModel, clips for the model of the networks that give a clip or one frame."""
    model = csd_model(opt)
    right = {(5, 4): CSDVideoModel, (5, 5): CSDVideoRecurrentModel}.get((input_axes, output_axes), CSDModel)
    others = {CSDModel, CSDVideoModel, CSDVideoRecurrentModel} - {right}
    if model in others:
        raise OptionError(
            f"{opt['network_g']['backbone']['type']} is trained by {right.__name__}, got {opt['model_type']!r} "
            "(option model_type)"
        )


def _check_patch(opt: Mapping[str, Any], network: CSSRNet, smallest: int) -> None:
    patch = opt["datasets"].get("train", {}).get("gt_size")
    if patch is None:
        return
    if (patch // opt["scale"]) % network.size_multiple:
        raise OptionError(
            f"expected a multiple of scale {opt['scale']} x {network.size_multiple}, got {patch} "
            "(option datasets:train:gt_size)"
        )
    if patch // opt["scale"] < smallest:
        raise OptionError(
            f"{opt['network_g']['backbone']['type']} takes patches of at least scale {opt['scale']} x {smallest}, "
            f"got {patch} (option datasets:train:gt_size)"
        )


def _check_pretrained(network: nn.Module, path_options: Mapping[str, Any], option: str) -> None:
    """A checkpoint fits the network, by the rules of BasicSR's `load_network`."""
    path, key = path_options.get(option), path_options.get("param_key_g", "params")
    if path is None:
        return
    content = load_mapping(path, f"path:{option}")
    state = content if key is None else content.get(key, content.get("params"))
    if not isinstance(state, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise OptionError(f"{path} holds no weights under {key!r} (options path:{option}, path:param_key_g)")
    shapes = {name.removeprefix("module."): tensor.shape for name, tensor in state.items()}
    own = {name: tensor.shape for name, tensor in network.state_dict().items()}
    own = {name: shape for name, shape in own.items() if name in shapes or not name.startswith("student_norms.")}
    different = next((name for name in sorted(own | shapes) if own.get(name) != shapes.get(name)), None)
    if different is not None:
        expected, found = (tuple(s[different]) if different in s else "nothing" for s in (own, shapes))
        raise OptionError(
            f"{path} does not fit network_g: {different} is {found}, expected {expected} (option path:{option})"
        )


def _check_negatives(opt: Mapping[str, Any]) -> None:
    train = opt.get("train") or {}
    if not opt["is_train"] or not train.get("contrastive_opt"):
        return
    negatives = parse(NegativesOptions, train.get("negatives") or {}, "train:negatives")
    batch = opt["datasets"]["train"]["batch_size_per_gpu"] * opt["world_size"]
    if negatives.source == "batch" and negatives.num > (batch - 1) * _contrast_frames(opt):
        raise OptionError(
            f"{negatives.num} negatives need a batch of {math.ceil(negatives.num / _contrast_frames(opt)) + 1}, "
            f"got {batch}: lower it or set "
            "train:negatives:source pool (option train:negatives:num)"
        )
    if negatives.kind == "history":
        if not train.get("ema_decay"):
            raise OptionError("history needs a moving average (options train:negatives:kind, train:ema_decay)")
        if csd_model(opt) in (CSDVideoModel, CSDVideoRecurrentModel):
            raise OptionError("history is for images, not for clips (option train:negatives:kind)")
    if negatives.source == "pool" and negatives.num > negatives.pool_size:
        raise OptionError(
            f"{negatives.num} negatives but a pool of {negatives.pool_size}: raise train:negatives:pool_size "
            "(option train:negatives:num)"
        )


def _contrast_frames(opt: Mapping[str, Any]) -> int:
    """How many images of each item of a batch take part in the contrast."""
    model = csd_model(opt)
    if model is None or not issubclass(model, CSDVideoRecurrentModel):
        return 1
    total = max(opt["datasets"]["train"].get("num_frame", 1), 1)
    wanted = parse(model.train_schema, opt["train"], "train").contrast_frames
    return total if wanted is None else min(wanted, total)


def _check_vgg(opt: Mapping[str, Any]) -> None:
    """Build the loss once: it reads the VGG file, or downloads it before anything else is written."""
    contrastive = (opt.get("train") or {}).get("contrastive_opt")
    if not opt["is_train"] or not contrastive:
        return
    loss: type[nn.Module] = LOSS_REGISTRY.get(contrastive["type"])
    built = loss(**{key: value for key, value in contrastive.items() if key != "type"})
    halvings = sum(isinstance(layer, nn.MaxPool2d) for layer in built.modules())
    crop = opt["train"].get("contrast_crop")
    patch = crop or opt["datasets"]["train"].get("gt_size")
    if patch is not None and patch < 2**halvings:
        raise OptionError(
            f"patches of {patch} pixels are too small for the deepest VGG layer, which needs {2**halvings} "
            f"(options {'train:contrast_crop' if crop else 'datasets:train:gt_size'}, "
            "train:contrastive_opt:layer_weights)"
        )


def _check_compiler(on_gpu: bool) -> None:
    """What torch.compile works with: Triton on a GPU, a C++ compiler on a CPU."""
    if on_gpu and importlib.util.find_spec("triton") is None:
        raise OptionError("triton is not installed (option train:compile)")
    if not on_gpu and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise OptionError("there is no C++ compiler, g++ or clang++, on the PATH (option train:compile)")


def _check_step(opt: Mapping[str, Any]) -> None:
    """What the options of the step itself need."""
    model = csd_model(opt)
    if not opt["is_train"] or model is None:
        return
    train = parse(model.train_schema, opt["train"], "train")
    batch = opt["datasets"]["train"]["batch_size_per_gpu"]
    if batch % train.accumulate:
        raise OptionError(f"a batch of {batch} does not divide by {train.accumulate} (option train:accumulate)")
    for key in ("pixel_opt", "teacher_opt", "distill_opt"):
        if train.accumulate > 1 and (getattr(train, key) or {}).get("reduction") == "sum":
            raise OptionError(
                f"a batch in parts needs reduction mean (options train:accumulate, train:{key}:reduction)"
            )
    if train.compile:
        _check_compiler(on_gpu=opt["num_gpu"] > 0)
    if train.contrast_crop is not None and train.contrast_crop % opt["scale"]:
        raise OptionError(
            f"expected a multiple of scale {opt['scale']}, got {train.contrast_crop} (option train:contrast_crop)"
        )
