"""The one place that changes BasicSR, so that it runs on a current stack; tested with BasicSR 1.4.2 and torch 2.12.

`import_mends` is what the import itself needs. `apply` puts the rest in place, each mend only where it is needed and
each falling back on BasicSR's own function, so that a BasicSR that has been mended keeps its behaviour.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from csd_plugin import import_mends  # noqa: F401  isort: skip  (must come before basicsr)

import basicsr
import basicsr.test
import basicsr.train
import basicsr.utils.dist_util
import torch
from basicsr.models.base_model import BaseModel
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from csd_plugin.checkpoint import load_mapping, newest_state
from csd_plugin.config.load import parse_options_with
from csd_plugin.config.preflight import check_batch
from csd_plugin.errors import OptionError
from csd_plugin.version import __version__


def apply() -> None:
    """Put every mend in place. Doing it again changes nothing."""
    if getattr(basicsr.train, "_csd_plugin_applied", False):
        return
    basicsr.train._csd_plugin_applied = True
    for module in (basicsr.train, basicsr.test):
        module.parse_options = parse_options_with(module.parse_options)
        module.get_env_info = _with_versions(module.get_env_info)
    basicsr.train.load_resume_state = load_resume_state
    basicsr.train.create_train_val_dataloader = _refusing_empty_epochs(basicsr.train.create_train_val_dataloader)
    basicsr.utils.dist_util._init_dist_pytorch = _with_gloo(basicsr.utils.dist_util._init_dist_pytorch)
    basicsr.utils.dist_util._init_dist_slurm = _with_gloo(basicsr.utils.dist_util._init_dist_slurm)
    BaseModel.get_optimizer = _with_torch_optimizers(BaseModel.get_optimizer)
    BaseModel.model_to_device = _with_ddp_on_cpu(BaseModel.model_to_device)


def version_line() -> str:
    """Which csd_plugin, basicsr and torch run, and where basicsr comes from."""
    return (
        f"csd_plugin {__version__} ({Path(__file__).parent}), BasicSR {basicsr.__version__} "
        f"({Path(basicsr.__file__).parent}), PyTorch {torch.__version__}, "
        f"{torch.cuda.device_count()} CUDA devices"
    )


def _with_versions(get_env_info: Callable[[], str]) -> Callable[[], str]:
    return lambda: f"{get_env_info()}\n{version_line()}"


def load_resume_state(opt: dict[str, Any]) -> Mapping[str, Any] | None:
    """The training state to go on from, or None.

    Unlike BasicSR 1.4.2 it works without CUDA, looks in the experiment's own folder and takes the newest state whose
    network file is there too.

    Args:
        opt: options; `path:resume_state` and the network paths are set as BasicSR does.

    Raises:
        OptionError: the state file cannot be read.
    """
    path = opt["path"].get("resume_state")
    if opt["auto_resume"]:
        path = newest_state(Path(opt["path"]["training_states"]), Path(opt["path"]["models"])) or path
        opt["path"]["resume_state"] = path
    if path is None:
        return None
    state = load_mapping(path, "path:resume_state")
    basicsr.train.check_resume(opt, state["iter"])
    return state


def _refusing_empty_epochs(create: Callable[..., Any]) -> Callable[..., Any]:
    """For data set types that `preflight` cannot count."""

    @functools.wraps(create)
    def create_train_val_dataloader(opt: dict[str, Any], logger: Any) -> Any:
        result = create(opt, logger)
        check_batch(opt["datasets"]["train"], len(result[0].dataset), opt["world_size"])
        return result

    return create_train_val_dataloader


def _with_gloo(init_dist: Callable[..., None]) -> Callable[..., None]:
    """Ranks without a GPU talk over gloo; BasicSR divides the rank by the number of GPUs."""

    @functools.wraps(init_dist)
    def init(*args: Any, **kwargs: Any) -> None:
        if torch.cuda.device_count() > 0:
            init_dist(*args, **kwargs)
            return
        if init_dist.__name__ == "_init_dist_slurm":
            raise OptionError(
                "slurm without GPUs: start with torchrun and --launcher pytorch (option --launcher slurm)"
            )
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group(backend="gloo")

    return init


def _with_torch_optimizers(get_optimizer: Callable[..., torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """BasicSR 1.4.2 knows Adam only; every other optimizer of torch.optim goes by its name."""

    @functools.wraps(get_optimizer)
    def get(self: BaseModel, optim_type: str, params: Any, lr: float, **kwargs: Any) -> torch.optim.Optimizer:
        try:
            return get_optimizer(self, optim_type, params, lr, **kwargs)
        except NotImplementedError:
            cls = getattr(torch.optim, optim_type, None)
            if not inspect.isclass(cls) or not issubclass(cls, torch.optim.Optimizer):
                raise OptionError(f"torch.optim has no {optim_type!r} (option train:optim_g:type)") from None
            return cls(params, **{"lr": lr, **kwargs})

    return get


def _with_ddp_on_cpu(model_to_device: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """BasicSR asks CUDA for the device of every distributed model."""

    @functools.wraps(model_to_device)
    def to_device(self: BaseModel, net: nn.Module) -> nn.Module:
        if not self.opt["dist"] or self.device.type == "cuda":
            return model_to_device(self, net)
        find_unused = self.opt.get("find_unused_parameters", False)
        return DistributedDataParallel(net.to(self.device), find_unused_parameters=find_unused)

    return to_device
