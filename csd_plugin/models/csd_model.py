"""CSDModel: joint training of a teacher and its students by contrastive self-distillation (the paper, section 3)."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from basicsr.losses import build_loss
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from csd_plugin.archs.cssr_arch import TEACHER, CSSRNet
from csd_plugin.checkpoint import cpu_state, save_atomically
from csd_plugin.config.schema import TrainOptions, ValOptions, parse
from csd_plugin.losses.contrastive_loss import ContrastiveLoss, join_distances
from csd_plugin.models.batch import Batch, Results
from csd_plugin.models.inference import run_padded, self_ensemble
from csd_plugin.models.negatives import Negatives, NegativeSampler, generator_for
from csd_plugin.models.progress import Progress
from csd_plugin.models.renamed import Renamed
from csd_plugin.models.tiles import retrying, run_in_tiles


class CSDModel(SRModel):
    """BasicSR's SRModel for a CSSRNet, with the losses of CSD.

    The total loss is `L1(S, GT) + lambda_T * L1(T, GT) + lambda_C * L_CL` (Wang et al., IJCAI 2021, eq. 6), by option
    with `L1(S, T)`, each part logged under its own name. T is the teacher that shares its weights with S, or one of its
    own that does not change (`path:pretrain_network_teacher`). Validation reports the student under the name of the
    data set and the teacher under `<name>_teacher`; each save writes the shared network and the stock student.

    Args:
        opt: options as BasicSR parses them; see `csd_plugin.config.schema` for the keys.

    Raises:
        OptionError: an option is unknown or out of range.
    """

    train_schema: type[TrainOptions] = TrainOptions
    val_schema: type[ValOptions] = ValOptions
    train_options: TrainOptions
    cri_teacher: nn.Module | None
    cri_distill: nn.Module | None
    cri_contrast: ContrastiveLoss | None

    def __init__(self, opt: dict[str, Any]) -> None:
        if opt["is_train"]:
            self.train_options = parse(self.train_schema, opt["train"], "train")
        self.val_options = parse(self.val_schema, opt.get("val") or {"save_img": False}, "val")
        self.active_width: float | None = None
        self.validation_tile = self.val_options.tile
        self.validated: dict[str, float] = {}
        self.first_validated: str | None = None
        super().__init__(opt)
        self._log_students()
        if self.is_train:
            shown = opt["rank"] == 0 and (opt.get("logger") or {}).get("progress", True)
            self.progress = Progress(self.train_options.total_iter, shown)

    @property
    def students(self) -> dict[float, str]:
        """Name of the student at each width, as `CSSRNet` has it."""
        return self._bare_net().students

    def init_training_settings(self) -> None:
        """Losses, EMA, optimizer and schedulers of SRModel, then the teacher's loss, the contrast and its negatives."""
        order = None
        if self._bare_net().channel_order == "importance" and self.opt["path"].get("resume_state") is None:
            order = self._bare_net().importance_order()
            self._bare_net().permute_channels(order)
        super().init_training_settings()
        if order is not None and hasattr(self, "net_g_ema") and self.opt["path"].get("pretrain_network_g") is not None:
            self.net_g_ema.permute_channels(order)  # which has just been loaded in the stock order
        options = self.train_options
        self.cri_teacher = build_loss(options.teacher_opt).to(self.device) if options.teacher_opt else None
        self.cri_distill = build_loss(options.distill_opt).to(self.device) if options.distill_opt else None
        self.cri_contrast = build_loss(options.contrastive_opt).to(self.device) if options.contrastive_opt else None
        if self.cri_contrast is not None:
            self.cri_contrast.to(memory_format=self.memory_format)
        if options.compile:
            self._bare_net().use_compiler()
            if self.cri_contrast is not None:
                self.cri_contrast.use_compiler()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.amp == "fp16")
        self.shared_seed = _of_first_rank(self.opt["manual_seed"], self.device)
        history = self._history if options.negatives.kind == "history" else None
        self.negative_sampler = NegativeSampler(options.negatives, self.opt["scale"], self.shared_seed, history)
        self.frozen_teacher = self._load_frozen_teacher()

    @property
    def memory_format(self) -> torch.memory_format:
        """Layout of networks and images in training."""
        return torch.channels_last if self.is_train and self.train_options.channels_last else torch.contiguous_format

    def device_batch(self, batch: Tensor) -> Tensor:
        """A batch on the run's device, in its memory layout."""
        layout = self.memory_format if batch.dim() == 4 else torch.preserve_format
        return batch.to(self.device, memory_format=layout, non_blocking=True)

    def autocast(self) -> AbstractContextManager[None]:
        """Mixed precision as `train:amp` says."""
        dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.train_options.amp]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """As BasicSR's, in the run's memory layout."""
        return super().model_to_device(net.to(memory_format=self.memory_format))  # type: ignore[call-overload]

    def get_optimizer(self, optim_type: str, params: Any, lr: float, **kwargs: Any) -> torch.optim.Optimizer:
        """As BasicSR's, in torch's fused form where there is one."""
        if optim_type in ("Adam", "AdamW", "SGD") and not {"fused", "foreach"} & set(kwargs):
            kwargs["fused"] = True
        return super().get_optimizer(optim_type, params, lr, **kwargs)

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """Take a batch.

        Args:
            data: `lq` and, but for testing without it, `gt`.
        """
        self.lq = self.device_batch(data["lq"])
        if "gt" in data:
            self.gt = self.device_batch(data["gt"])

    def optimize_parameters(self, current_iter: int) -> None:
        """One step on the batch given to `feed_data`.

        Args:
            current_iter: iteration, from 1.
        """
        options = self.train_options
        contrasts = self.cri_contrast is not None and options.contrast_weight(current_iter) > 0
        negatives = self._draw_negatives(current_iter) if contrasts else None
        contrasts = contrasts and (negatives is not None or options.negatives.num == 0)
        if self.cri_contrast is not None and negatives is not None and options.accumulate > 1:
            with self.autocast():
                negatives = replace(negatives, features=self.cri_contrast.features(_rgb(negatives.images)))
        parts = Batch(self.lq, self.gt, negatives).parts(options.accumulate)
        joined = self._joined_distances(parts, current_iter) if contrasts and len(parts) > 1 else None

        self.optimizer_g.zero_grad()
        logged: dict[str, Tensor] = {}
        outputs: list[Tensor] = []
        for number, part in enumerate(parts):
            with self._gathering_gradients(last=number == len(parts) - 1):
                results = self._forward_all(part, current_iter, contrasts)
                losses = self._losses(results, part, contrasts, joined, current_iter)
                self.scaler.scale(torch.stack(list(losses.values())).sum() / len(parts)).backward()
            outputs.append(results.students[self._bare_net().widths[0]].detach())
            for name, value in losses.items():
                logged[name] = logged.get(name, 0) + value.detach() / len(parts)
        if options.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer_g)
            nn.utils.clip_grad_norm_(self._bare_net().parameters(), options.clip_grad_norm)
        self.scaler.step(self.optimizer_g)
        self.scaler.update()

        self.output = torch.cat(outputs)
        self.log_dict = self.reduce_loss_dict(logged)
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)
        self.progress.reach(current_iter)

    @torch.no_grad()
    def model_ema(self, decay: float = 0.999) -> None:
        """Moving average of the parameters; buffers, such as the statistics of a batch normalisation, are copied.

        Args:
            decay: weight of the average so far.
        """
        super().model_ema(decay)
        for average, buffer in zip(self.net_g_ema.buffers(), self._bare_net().buffers(), strict=True):
            average.copy_(buffer)

    def network_inputs(self, lq: Tensor) -> tuple[Any, ...]:
        """Arguments of the network for a batch; a model of a network that takes more than the images overrides this.

        Args:
            lq: `self.lq`, flipped, turned or padded in validation.
        """
        return (lq,)

    def to_images(self, batch: Tensor, current_iter: int) -> Tensor:
        """The images (N, C, H, W) of a batch that the contrast compares; from clips it takes some of the frames.

        Args:
            batch: what `self.lq` and `self.gt` hold or the network gives.
            current_iter: iteration, from 1.
        """
        return batch

    def super_resolve(self, network: Callable[[Tensor], Tensor], lq: Tensor) -> Tensor:
        """What validation and testing do with a network at one width.

        Args:
            network: from what `self.lq` holds to what the network gives.
            lq: `self.lq`.
        """
        return self_ensemble(network, lq) if self.val_options.self_ensemble else network(lq)

    def test(self) -> None:
        """Super-resolve `self.lq` at the active width (the default student's) into `self.output`."""
        net = self.net_g_ema if hasattr(self, "net_g_ema") else self._bare_net()
        was_training = net.training
        net.eval()

        def run(lq: Tensor) -> Tensor:
            return net(*self.network_inputs(lq), width=self.active_width or net.widths[0])

        def run_at(side: int | None) -> Tensor:
            network = partial(run_padded, run, net.size_multiple)
            if side is not None:
                network = partial(run_in_tiles, run, scale=self.opt["scale"], side=side, multiple=net.size_multiple)
            return self.super_resolve(network, self.lq)

        with torch.no_grad():
            if self.lq.dim() == 4:
                # What fitted into memory once is tried first from then on.
                self.output, self.validation_tile = retrying(run_at, self.validation_tile, max(self.lq.shape[-2:]))
            else:
                self.output = run_at(None)
        net.train(was_training)

    def nondist_validation(self, dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool) -> None:
        """Validate every student and, by option, the teacher, each with metrics and curves of its own."""
        self.validate_each(super().nondist_validation, dataloader, current_iter, tb_logger, save_img)

    def validate_each(
        self, validate: Callable[..., None], dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool
    ) -> None:
        """Validate every student and, by option, the teacher, and keep the students that have never been better.

        Args:
            validate: BasicSR's validation at the active width, which takes the arguments that follow.
            dataloader: validation data.
            current_iter: iteration, or the name of the run in testing.
            tb_logger: tensorboard or None.
            save_img: whether to write the pictures.
        """
        name = dataloader.dataset.opt["name"]
        if self.is_train:
            # BasicSR counts on past the last iteration before its final validation.
            current_iter = min(current_iter, self.train_options.total_iter)
        self.first_validated = self.first_validated or name
        roles = dict(self.students)
        if self.val_options.teacher:
            roles[TEACHER] = "teacher"
        for width, label in roles.items():
            shown = name if label == "student" else f"{name}_{label}"
            with self._evaluating(width, label):
                validate(Renamed(dataloader, shown), current_iter, tb_logger, save_img)
            value = next(iter(getattr(self, "metric_results", {}).values()), None)
            if name == self.first_validated and isinstance(value, float):
                self.validated[label] = value
            if self.is_train and width != TEACHER:
                self._keep_best(width, label, name, shown, current_iter)
        if self.is_train:
            self.progress.show(self.validated)

    def save(self, epoch: int, current_iter: int) -> None:
        """Write the stock students, the shared network and, last, the training state."""
        for width, label in self.students.items():
            self._save_student(width, label, current_iter)
        super().save(epoch, current_iter)

    @master_only
    def save_network(
        self,
        net: nn.Module | list[nn.Module],
        net_label: str,
        current_iter: int | str,
        param_key: str | list[str] = "params",
    ) -> None:
        """As BasicSR's, but written atomically; a failed write raises.

        Args:
            net: network or networks that go into one file.
            net_label: first part of the file name.
            current_iter: iteration; -1 stands for `latest`.
            param_key: key of each network in the file.
        """
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        content = {key: cpu_state(self.get_bare_model(n)) for key, n in zip(keys, nets, strict=True)}
        file = f"{net_label}_{'latest' if current_iter == -1 else current_iter}.pth"
        save_atomically(content, Path(self.opt["path"]["models"]) / file)

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """As BasicSR's, with the best metrics and the pool of negatives; written atomically.

        Args:
            epoch: current epoch.
            current_iter: iteration; -1 writes nothing, as there is nothing to go on with.
        """
        if current_iter == -1:
            return
        state = {
            "epoch": epoch,
            "iter": current_iter,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "best_metric_results": _plain_numbers(getattr(self, "best_metric_results", {})),
            "negative_pool": self.negative_sampler.pool,
            "scaler": self.scaler.state_dict(),
        }
        save_atomically(state, Path(self.opt["path"]["training_states"]) / f"{current_iter}.state")

    def resume_training(self, resume_state: Mapping[str, Any]) -> None:
        """Restore optimizers, schedulers, best metrics, the pool of negatives and the scale of float16.

        Args:
            resume_state: content of a training state; BasicSR's own, without the last three, is accepted.
        """
        super().resume_training(resume_state)
        if resume_state.get("best_metric_results"):
            self.best_metric_results = resume_state["best_metric_results"]
        self.negative_sampler.pool = resume_state.get("negative_pool")
        if resume_state.get("scaler"):
            self.scaler.load_state_dict(resume_state["scaler"])

    def _bare_net(self) -> CSSRNet:
        return self.get_bare_model(self.net_g)

    def _draw_negatives(self, current_iter: int) -> Negatives | None:
        images = self._contrast_images(self.lq, current_iter)
        return self.negative_sampler.sample(images, current_iter, per_clip=len(images) // len(self.lq))

    def _contrast_images(self, batch: Tensor, current_iter: int) -> Tensor:
        """The images that the contrast compares, by option a crop, the same of every image and on every rank."""
        images = self.to_images(batch, current_iter)
        if self.train_options.contrast_crop is None:
            return images
        enlarged = images.shape[-1] // self.lq.shape[-1]
        generator = generator_for(self.shared_seed, current_iter)
        for axis in (-2, -1):
            side = self.lq.shape[axis]
            size = min(self.train_options.contrast_crop // self.opt["scale"], side)
            start = int(torch.randint(side - size + 1, (), generator=generator))
            images = images.narrow(axis, start * enlarged, size * enlarged)
        return images

    def _gathering_gradients(self, last: bool) -> AbstractContextManager[None]:
        """DistributedDataParallel averages over the ranks in the last part only."""
        holds_back = isinstance(self.net_g, DistributedDataParallel) and not last
        return self.net_g.no_sync() if holds_back else nullcontext()

    def _forward_all(self, part: Batch, current_iter: int, contrasts: bool) -> Results:
        """What the students and, where something needs it, the teacher give, from one forward (as DDP demands)."""
        widths = list(self.students)
        trains = moves = self._teacher_trains(current_iter)
        is_positive = contrasts and self.train_options.positive == "teacher"
        guides = is_positive or self.cri_distill is not None
        frozen = self.frozen_teacher if guides else None
        if self.cri_contrast is not None and is_positive:
            moves = trains or not self.cri_contrast.detach_positive
        if trains or (guides and frozen is None):
            widths.insert(0, TEACHER)
        inputs = self.network_inputs(part.lq)
        with self.autocast():
            outputs = self.net_g(*inputs, width=widths, detach=() if moves else (TEACHER,))
            with torch.no_grad():
                of_frozen = None if frozen is None else frozen(*inputs).float()
        outputs = {width: output.float() for width, output in outputs.items()}
        teacher = outputs.pop(TEACHER, None)
        return Results(outputs, teacher, teacher if of_frozen is None else of_frozen)

    def _losses(
        self,
        results: Results,
        part: Batch,
        contrasts: bool,
        joined: Mapping[float, Tensor] | None,
        current_iter: int,
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = OrderedDict()
        for width, label in self.students.items():
            losses[f"l_pix_{label}"] = self.cri_pix(results.students[width], part.gt)
        if self.cri_teacher is not None and self._teacher_trains(current_iter):
            losses["l_pix_teacher"] = self.cri_teacher(results.teacher, part.gt)
        if self.cri_distill is not None:
            assert results.guide is not None
            for width, label in self.students.items():
                losses[f"l_distill_{label}"] = self.cri_distill(results.students[width], results.guide.detach())
        if self.cri_contrast is not None and contrasts:
            weight = self.train_options.contrast_weight(current_iter)
            for width, distances in self._distances(results, part, current_iter).items():
                loss = self.cri_contrast.loss(distances, None if joined is None else joined[width])
                losses[self.students[width].replace("student", "l_contrast")] = loss * weight
        return losses

    def _distances(self, results: Results, part: Batch, current_iter: int) -> dict[float, Tensor]:
        """What the contrast of each student is made of; the targets' features are computed once for all students."""
        assert self.cri_contrast is not None
        positive = results.guide if self.train_options.positive == "teacher" else part.gt
        assert positive is not None
        negatives = part.negatives
        pushed_from = None if negatives is None else negatives.features or _rgb(negatives.images)
        pair_weights = None if negatives is None else negatives.pair_weights
        with self.autocast():
            targets = self.cri_contrast.targets(_rgb(self._contrast_images(positive, current_iter)), pushed_from)
            return {
                width: self.cri_contrast.distances(
                    _rgb(self._contrast_images(results.students[width], current_iter)), targets, pair_weights
                )
                for width in self.students
            }

    @torch.no_grad()
    def _joined_distances(self, parts: Sequence[Batch], current_iter: int) -> dict[float, Tensor]:
        """Mean of the distances over the parts, which decides how much each counts; costs a forward pass more."""
        with torch.random.fork_rng(devices=self._devices()):  # stochastic depth then drops the same blocks again
            each = [
                self._distances(self._forward_all(part, current_iter, contrasts=True), part, current_iter)
                for part in parts
            ]
        return {width: join_distances([distances[width] for distances in each]) for width in self.students}

    def _devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def _load_frozen_teacher(self) -> nn.Module | None:
        """The teacher of `path:pretrain_network_teacher`: the stock backbone at full width, which nothing trains."""
        path = self.opt["path"].get("pretrain_network_teacher")
        if path is None:
            return None
        teacher = self._bare_net().export(TEACHER)
        self.load_network(teacher, path, True, self.opt["path"].get("param_key_g", "params"))
        if self.train_options.compile:
            teacher.compile()
        return teacher.to(memory_format=self.memory_format).eval().requires_grad_(False)  # type: ignore[call-overload]

    def _history(self, lq: Tensor) -> Tensor:
        """LR patches super-resolved by the moving average of the default student."""
        with self.autocast():
            return self.net_g_ema(*self.network_inputs(lq), width=self.net_g_ema.widths[0]).float()

    def _teacher_trains(self, current_iter: int) -> bool:
        stop = self.train_options.teacher_stop_iter
        return self.cri_teacher is not None and (stop is None or current_iter <= stop)

    @contextmanager
    def _evaluating(self, width: float, label: str) -> Iterator[None]:
        """Make `width` the active one; pictures of others than the default student go into a folder of their own."""
        path = self.opt["path"]
        folder = path["visualization"]
        self.active_width = width
        if self.is_train and label != "student":
            path["visualization"] = os.path.join(folder, label)
        try:
            yield
        finally:
            self.active_width = None
            path["visualization"] = folder

    def _keep_best(self, width: float, label: str, dataset: str, shown: str, current_iter: int) -> None:
        """Save the student when it has just reached its best value of the deciding metric."""
        options = self.val_options
        if not options.metrics:
            return
        metric = options.best_metric or next(iter(options.metrics))
        if (
            dataset == (options.best_dataset or self.first_validated)
            and self.best_metric_results[shown][metric]["iter"] == current_iter
        ):
            self._save_student(width, label, "best")

    def _save_student(self, width: float, label: str, current_iter: int | str) -> None:
        nets, keys = [self._bare_net().export(width)], ["params"]
        if hasattr(self, "net_g_ema"):
            nets.append(self.net_g_ema.export(width))
            keys.append("params_ema")
        self.save_network(nets, f"net_g_{label}", current_iter, keys)

    @master_only
    def _log_students(self) -> None:
        for width, label in self.students.items():
            options = self._bare_net().stock_options(width)
            block = yaml.safe_dump(
                _plain_numbers(options), default_flow_style=True, sort_keys=False, width=1000
            ).strip()
            get_root_logger().info(f"Stock {label} (width {width:g}) is network_g: {block}")


def _of_first_rank(number: int, device: torch.device) -> int:
    """A number that is the same on all ranks; without `manual_seed` BasicSR draws a seed on each."""
    if not dist.is_initialized():
        return number
    shared = torch.tensor(number, device=device)
    dist.broadcast(shared, 0)
    return int(shared)


def _rgb(images: Tensor) -> Tensor:
    """Grey images (B, 1, H, W) as RGB ones for the VGG."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def _plain_numbers(value: Any) -> Any:
    """Python containers and numbers: safe loaders refuse numpy's."""
    if isinstance(value, Mapping):
        return {key: _plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_numbers(item) for item in value]
    return value.item() if hasattr(value, "item") else value
