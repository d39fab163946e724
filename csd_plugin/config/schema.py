"""The options of a CSD run, parsed once into frozen objects. Unknown keys are errors.

Blocks that BasicSR or torch own (losses, optimizer, scheduler, metrics) stay mappings; their keys are checked against
the signature of what they build.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from csd_plugin.errors import OptionError, suggestion

Block = dict[str, Any]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _off(value: object) -> object:
    """YAML reads an unquoted `off` as false."""
    return "off" if value is False else value


class NegativesOptions(_Options):
    """What the student is pushed from.

    Attributes:
        source: `batch` takes other images of the batch; `pool` takes patches of earlier batches, and of this one
            until there are K; `own` takes the anchor's own image, one negative that counts for K.
        kind: what an LR patch becomes: `bicubic` enlarges it (the paper), `blurred` and `noisy` degrade it first,
            `history` is the moving average of the student applied to it.
        num: K, the negatives of each anchor. 0 leaves the contrast without a denominator.
        pool_size: patches that the pool keeps (source pool).
    """

    source: Literal["batch", "pool", "own"] = "batch"
    kind: Literal["bicubic", "blurred", "noisy", "history"] = "bicubic"
    num: int = Field(10, ge=0)
    pool_size: int = Field(64, ge=1)


class TrainOptions(_Options):
    """The block `train`.

    Attributes:
        pixel_opt: L1 of the student to GT.
        teacher_opt: the same for the teacher; its loss_weight is lambda_T.
        teacher_stop_iter: the teacher's own loss ends after this iteration; None keeps it.
        distill_opt: L1 of the student to the teacher's output (knowledge distillation); None leaves it out.
        contrastive_opt: `ContrastiveLoss`; without it this is joint training (J-T1).
        positive: what the student is pulled to.
        negatives: what it is pushed from.
        contrast_stop_iter: the contrast ends after this iteration; None keeps it.
        contrast_decay: how its weight falls to 0 until then, or until the end of the run.
        contrast_every: the contrast is computed in every n-th iteration, n times as strong.
        contrast_crop: side in HR pixels of a random crop that the contrast compares; None takes the whole patch.
        amp: mixed precision of the networks and the VGG.
        accumulate: parts that a batch is worked on in, for less memory; the result is that of the whole batch.
        clip_grad_norm: largest norm of the gradient; None does not clip.
        channels_last: memory layout of networks and images; not for video.
        compile: run VGG, distances, teacher and students through torch.compile.
    """

    total_iter: int = Field(gt=0)
    optim_g: Block
    scheduler: Block
    pixel_opt: Block
    teacher_opt: Block | None = None
    teacher_stop_iter: int | None = Field(None, ge=0)
    distill_opt: Block | None = None
    contrastive_opt: Block | None = None
    positive: Literal["teacher", "gt"] = "teacher"
    negatives: NegativesOptions = Field(default_factory=lambda: NegativesOptions.model_validate({}))
    contrast_stop_iter: int | None = Field(None, ge=0)
    contrast_decay: Annotated[Literal["off", "linear", "cosine"], BeforeValidator(_off)] = "off"
    contrast_every: int = Field(1, ge=1)
    contrast_crop: int | None = Field(None, ge=1)
    amp: Annotated[Literal["off", "bf16", "fp16"], BeforeValidator(_off)] = "off"
    accumulate: int = Field(1, ge=1)
    clip_grad_norm: float | None = Field(None, gt=0)
    channels_last: bool = True
    compile: bool = False
    ema_decay: float = Field(0, ge=0, lt=1)
    warmup_iter: int = -1

    def contrast_weight(self, current_iter: int) -> float:
        """What the contrast is multiplied with in an iteration, counted from 1; 0 leaves it out."""
        end = self.total_iter if self.contrast_stop_iter is None else self.contrast_stop_iter
        if current_iter > end or current_iter % self.contrast_every:
            return 0.0
        done = (current_iter - 1) / end
        decay = {"off": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[self.contrast_decay]
        return self.contrast_every * decay


class ValOptions(_Options):
    """The block `val`.

    Attributes:
        teacher: validate the teacher as well, under the name `<dataset>_teacher`.
        self_ensemble: average over the 8 flips and rotations (the paper's "+").
        tile: side in LR pixels of the tiles that large images are validated in; None takes whole images, and tiles only
            where memory runs out. Not for video.
        best_metric: metric that decides on the best student; None takes the first one.
        best_dataset: name of the validation set that decides; None takes the first one validated.
    """

    save_img: bool
    val_freq: float | None = Field(None, ge=1)
    suffix: str | None = None
    pbar: bool = False
    metrics: dict[str, Block] | None = None
    teacher: bool = True
    self_ensemble: bool = False
    tile: int | None = Field(None, ge=16)
    best_metric: str | None = None
    best_dataset: str | None = None


class SlidingWindowTrainOptions(TrainOptions):
    """The block `train` of CSDVideoModel.

    Attributes:
        dcn_lr_mul: learning rate of the deformable convolutions over that of the rest.
        tsa_iter: only the fusion is trained before this iteration.
    """

    dcn_lr_mul: float = Field(1, ge=0)
    tsa_iter: int | None = Field(None, ge=1)


class RecurrentTrainOptions(TrainOptions):
    """The block `train` of CSDVideoRecurrentModel.

    Attributes:
        flow_lr_mul: learning rate of the optical flow over that of the rest.
        fix_flow: the optical flow is not trained before this iteration.
        contrast_frames: frames of each clip that the contrast compares, drawn anew in each iteration; None takes all.
    """

    flow_lr_mul: float = Field(1, ge=0)
    fix_flow: int | None = Field(None, ge=1)
    contrast_frames: int | None = Field(2, ge=1)


class RecurrentValOptions(ValOptions):
    """The block `val` of CSDVideoRecurrentModel.

    Attributes:
        flip_seq: average over the clip and the reversed clip.
        center_frame_only: rate the middle frame alone (Vimeo-90K).
    """

    flip_seq: bool = False
    center_frame_only: bool = False


class PathOptions(_Options):
    """The block `path`.

    Attributes:
        pretrain_network_teacher: weights of a teacher that stays as it is, beside the one that shares the student's
            weights; students are then pulled to this one.
    """

    pretrain_network_g: str | None = None
    pretrain_network_teacher: str | None = None
    param_key_g: str | None = "params"
    strict_load_g: bool = True
    resume_state: str | None = None
    ignore_resume_networks: str | list[str] | None = None
    experiments_root: str | None = None
    results_root: str | None = None


class LoggerOptions(_Options):
    """The block `logger`.

    Attributes:
        progress: show a progress bar in a terminal.
    """

    progress: bool = True
    print_freq: int = Field(100, ge=1)
    save_checkpoint_freq: float = Field(ge=1)
    use_tb_logger: bool = False
    wandb: Block | None = None


class DatasetOptions(_Options):
    """What BasicSR's data sets and its loader have in common."""

    name: str
    type: str
    dataroot_gt: str
    dataroot_lq: str
    io_backend: Block
    meta_info_file: str | None = None
    gt_size: int | None = Field(None, ge=1)
    use_hflip: bool = False
    use_rot: bool = False
    use_shuffle: bool = True
    num_worker_per_gpu: int = Field(0, ge=0)
    batch_size_per_gpu: int = Field(1, ge=1)
    dataset_enlarge_ratio: int = Field(1, ge=1)
    prefetch_mode: Literal["cpu", "cuda"] | None = None
    num_prefetch_queue: int = 1
    pin_memory: bool = False
    persistent_workers: bool = False
    scale: int | None = None
    phase: str | None = None


class PairedImageDatasetOptions(DatasetOptions):
    """One entry of `datasets` whose type is `PairedImageDataset`."""

    filename_tmpl: str = "{}"
    color: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


class ClipDatasetOptions(DatasetOptions):
    """One entry of `datasets` of one of BasicSR's types for video."""

    num_frame: int
    dataroot_flow: str | None = None
    val_partition: Literal["REDS4", "official"] | None = None
    test_mode: bool = False
    interval_list: list[int] = Field([1], min_length=1)
    random_reverse: bool = False
    flip_sequence: bool = False
    cache_data: bool = False
    padding: str | None = None
    use_duf_downsampling: bool = False


class NetworkOptions(_Options):
    """The block `network_g`; the backbone is checked by the architecture itself."""

    type: Literal["CSSRNet"]
    width: float | list[float]
    backbone: Block
    width_args: list[str] | None = None
    channel_order: Literal["stock", "importance"] = "stock"
    example_input: list[Any] | dict[str, Any] | None = None
    channel_map: dict[str, dict[int, list[int | str]]] | None = None


class CSDOptions(_Options):
    """A whole option file whose model is CSDModel or derived from it.

    The blocks `train` and `val` are parsed with the schemas that the model names.
    """

    name: str
    model_type: str
    scale: int = Field(ge=1)
    num_gpu: int | Literal["auto"]
    manual_seed: int | None = None
    datasets: dict[str, Block]
    network_g: NetworkOptions
    path: PathOptions
    train: Block | None = None
    val: Block | None = None
    logger: LoggerOptions | None = None
    dist_params: Block | None = None
    find_unused_parameters: bool = False
    use_static_graph: bool = False


OptionsT = TypeVar("OptionsT", bound=_Options)


def parse(schema: type[OptionsT], block: Mapping[str, Any], where: str = "") -> OptionsT:
    """Parse a block of an option file.

    Args:
        schema: class of the block.
        block: the block; it is not changed.
        where: option path of the block, such as `train`, quoted in errors.

    Raises:
        OptionError: unknown key (with the nearest known one), missing key or a value out of range, in one line.
    """
    try:
        return schema.model_validate(dict(block))
    except ValidationError as error:
        raise OptionError(_one_line(schema, error.errors()[0], where)) from None


def _one_line(schema: type[BaseModel], error: Mapping[str, Any], where: str) -> str:
    location = [str(part) for part in error["loc"]]
    option = ":".join([*([where] if where else []), *location])
    if error["type"] == "extra_forbidden":
        return f"unknown option {option}{suggestion(location[-1], _fields_at(schema, location[:-1]))}"
    if error["type"] == "missing":
        return f"missing option {option}"
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r} (option {option})"


def _fields_at(schema: type[BaseModel], location: Sequence[str]) -> list[str]:
    for part in location:
        field = schema.model_fields.get(part)
        candidates = get_args(field.annotation) or (field.annotation,) if field else ()
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        schema = nested[0]
    return list(schema.model_fields)
