"""Recipes and arms: from `recipes/*.yml` and `arms.yml` to the option files that `basicsr train` runs."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from csd_plugin import CSSRNet, OptionError
from csd_plugin.archs.cssr_arch import TEACHER

HERE = Path(__file__).parent
Options = dict[str, Any]
TEACHER_ARM = "teacher"


class Arm(BaseModel):
    """A way to the student.

    Attributes:
        about: one line for the document.
        kind: `joint` trains by CSDModel, `stock` the narrow network alone by SRModel.
        of: the arm that this one is a variant of.
        changes: entries a:b:c of the option file; TEACHER stands for the trained teacher's file.
        finetune: share of the updates, the last ones, that the exported student gets alone with L1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str
    kind: str = "joint"
    of: str | None = None
    changes: dict[str, Any] = Field(default_factory=dict)
    finetune: float = Field(0, ge=0, lt=1)


class TestSet(BaseModel):
    """Photographs to rate the students on; without `lq` the LR images are made by MATLAB's bicubic.

    Attributes:
        hr: folder below the data folder.
        lq: folder below the data folder with files of the same names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hr: str
    lq: str | None = None


class Data(BaseModel):
    """What a recipe reads, below the folder that `--data` names.

    Attributes:
        train: folder of photographs.
        held_out: number of them, evenly spread over the sorted names, that only validation sees.
        crop_size: side of the sub-images in HR pixels.
        step: distance between them.
        tests: test sets by name; they are looked at in the end only.
        vgg: weights of the VGG-19.
        teacher: a trained teacher's file; None trains one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str
    held_out: int = Field(ge=1)
    crop_size: int
    step: int
    tests: dict[str, TestSet]
    vgg: str
    teacher: str | None = None


class Recipe(BaseModel):
    """A comparison of arms.

    Attributes:
        name: name of its file.
        title: heading in the document.
        about: a paragraph for the document.
        finding: what came out, for the document.
        rank: place in the document.
        seeds: each arm is trained with each.
        teacher: `iterations` and `lr` of the teacher's own training.
        arms: names in `arms.yml` or in `variants`.
        variants: arms of this recipe alone.
        data: what it reads.
        options: the option file of the arm `csd`, without what the other keys decide on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    about: str
    finding: str = ""
    rank: int = 0
    seeds: list[int] = Field(min_length=1)
    teacher: dict[str, float]
    arms: list[str]
    variants: dict[str, Arm] = Field(default_factory=dict)
    data: Data
    options: Options

    def arm(self, name: str) -> Arm:
        """An arm with what it takes over from the one that it is a variant of.

        Raises:
            OptionError: no such arm.
        """
        known = {**_common_arms(), **self.variants}
        if name not in known:
            raise OptionError(f"no arm {name!r} (recipe {self.name})")
        arm = known[name]
        if arm.of is None:
            return arm
        parent = self.arm(arm.of)
        return arm.model_copy(
            update={
                "kind": parent.kind,
                "changes": {**parent.changes, **arm.changes},
                "finetune": arm.finetune or parent.finetune,
            }
        )

    @property
    def scale(self) -> int:
        """Upsampling factor."""
        return int(self.options["scale"])


@dataclass(frozen=True)
class Stage:
    """One call of `basicsr train`.

    Attributes:
        options: the option file.
        network: the block `network_g` of the stock network that comes out.
        result: the file below the work folder that holds it.
        shared: the file with teacher and student, if it has both.
    """

    options: Options
    network: Options
    result: str
    shared: str | None = None


@dataclass(frozen=True)
class Run:
    """An arm with a seed.

    Attributes:
        recipe: the recipe.
        arm: name of the arm.
        seed: the seed; None for the teacher.
    """

    recipe: Recipe = field(repr=False)
    arm: str
    seed: int | None

    @property
    def name(self) -> str:
        """Of its experiment folder and its result file."""
        return self.arm if self.seed is None else f"{self.arm}_{self.seed}"

    def stages(self) -> list[Stage]:
        """What is to be trained, one after the other."""
        if self.seed is None:
            return [_teacher_stage(self.recipe)]
        return _stages(self)


def load_recipe(name: str) -> Recipe:
    """Read `recipes/<name>.yml`.

    Raises:
        OptionError: no such recipe, or it is not what it should be.
    """
    try:
        return Recipe.model_validate({"name": name, **_content(name)})
    except ValidationError as error:
        first = error.errors()[0]
        raise OptionError(f"recipe {name}: {':'.join(map(str, first['loc']))}: {first['msg']}") from None


def _content(name: str) -> dict[str, Any]:
    """A recipe's keys; `base` names a recipe to take the others from, `changes` are entries a:b:c of `options`."""
    path = HERE / "recipes" / f"{name}.yml"
    if not path.is_file():
        raise OptionError(f"no recipe {name!r}, expected one of {', '.join(recipe_names())}")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    base = content.pop("base", None)
    merged = {**(_content(base) if base else {}), **content}
    change(merged["options"], merged.pop("changes", {}))
    return merged


def recipe_names() -> list[str]:
    """All recipes."""
    return sorted(path.stem for path in (HERE / "recipes").glob("*.yml"))


@cache
def _common_arms() -> dict[str, Arm]:
    content = yaml.safe_load((HERE / "arms.yml").read_text(encoding="utf-8"))
    return {name: Arm.model_validate(block or {}) for name, block in content.items()}


def stock_network(network_g: Options, width: float | None = None) -> Options:
    """The block `network_g` of a stock network from that of a CSSRNet.

    Args:
        network_g: of the CSSRNet.
        width: 1 for the teacher; None for the student.
    """
    network = CSSRNet.from_options(network_g)
    return network.stock_options(network.widths[0] if width is None else width)


def change(options: Options, changes: Mapping[str, Any]) -> None:
    """Set entries a:b:c of an option file in place."""
    for path, value in changes.items():
        *parents, last = path.split(":")
        block = options
        for parent in parents:
            block = block[parent]
        block[last] = copy.deepcopy(value)


def _common(recipe: Recipe, name: str, seed: int) -> Options:
    """The recipe's option file with data and names filled in; paths are below the work folder."""
    options = copy.deepcopy(recipe.options)
    scale = recipe.scale
    data = {"type": "PairedImageDataset", "filename_tmpl": "{}"}
    train = {"dataroot_gt": "data/train_HR_sub.lmdb", "dataroot_lq": f"data/train_LR_bicubic_X{scale}_sub.lmdb"}
    held_out = {"dataroot_gt": "data/held_out/HR", "dataroot_lq": "data/held_out/LR"}
    options["datasets"] = {
        "train": {"name": "train", **data, **train, "io_backend": {"type": "lmdb"}, **options["datasets"]["train"]},
        "val": {"name": "held_out", **data, **held_out, "io_backend": {"type": "disk"}},
    }
    options |= {"name": name, "manual_seed": seed}
    options["val"].setdefault("save_img", False)
    options["val"]["metrics"] = {"psnr": {"type": "calculate_psnr", "crop_border": scale, "test_y_channel": True}}
    options["logger"]["use_tb_logger"] = True
    return options


def _as_stock(options: Options, network: Options) -> Options:
    """The option file for SRModel and a stock network."""
    train = {key: options["train"][key] for key in ("ema_decay", "optim_g", "scheduler", "total_iter", "pixel_opt")}
    val = {key: value for key, value in options["val"].items() if key != "teacher"}
    path = {"pretrain_network_g": None, "strict_load_g": True, "resume_state": None}
    stock = {"model_type": "SRModel", "network_g": network, "train": train, "val": val, "path": path}
    return {**options, **copy.deepcopy(stock)}


def _teacher_stage(recipe: Recipe) -> Stage:
    network = stock_network(recipe.options["network_g"], TEACHER)
    options = _as_stock(_common(recipe, TEACHER_ARM, recipe.seeds[0]), network)
    iterations = int(recipe.teacher["iterations"])
    options["train"] |= {"total_iter": iterations, "scheduler": _cosine(iterations)}
    options["train"]["optim_g"]["lr"] = recipe.teacher["lr"]
    options["val"]["val_freq"] = iterations // 10
    return Stage(options, network, f"experiments/{TEACHER_ARM}/models/net_g_latest.pth")


def _stages(run: Run) -> list[Stage]:
    assert run.seed is not None
    recipe, arm = run.recipe, run.recipe.arm(run.arm)
    teacher = f"experiments/{TEACHER_ARM}/models/net_g_latest.pth"
    models = f"experiments/{run.name}/models"
    options = _common(recipe, run.name, run.seed)
    options["path"] = {"pretrain_network_g": teacher, "strict_load_g": True, "resume_state": None}
    options["train"]["contrastive_opt"]["vgg_weights"] = "data/vgg.pth"
    change(options, {path: teacher if value == "TEACHER" else value for path, value in arm.changes.items()})
    network = stock_network(options["network_g"])
    if arm.kind == "stock":
        return [Stage(_as_stock(options, network), network, f"{models}/net_g_latest.pth")]
    total = options["train"]["total_iter"]
    tail = round(total * arm.finetune)
    options["train"]["total_iter"] = total - tail
    stages = [Stage(options, network, f"{models}/net_g_student_latest.pth", f"{models}/net_g_latest.pth")]
    if tail:
        finetuned = _as_stock({**options, "name": f"{run.name}_l1"}, network)
        finetuned["path"]["pretrain_network_g"] = stages[0].result
        finetuned["train"] |= {"total_iter": tail, "scheduler": _cosine(tail)}
        finetuned["train"]["optim_g"]["lr"] *= (1 + math.cos(math.pi * (1 - arm.finetune))) / 2
        stages.append(Stage(finetuned, network, f"experiments/{run.name}_l1/models/net_g_latest.pth"))
    return stages


def _cosine(iterations: int) -> Options:
    return {"type": "CosineAnnealingRestartLR", "periods": [iterations], "eta_min": 1e-6}
