"""One training step beside its floor and beside a plain implementation: `python -m benchmarks.step`.

The *floor* is the sum of the passes that nothing can avoid, each timed alone in the same run: teacher forward and
backward, student forward and backward, VGG forward and backward on the student's output, VGG forward on the teacher's
output and on the K negatives, and the optimizer. The *reference* is written from the paper's formula as one would
first write it: float32, NCHW, differences of all pairs in one tensor, three calls of the VGG, a graph for the teacher's
features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.report import report, table
from csd_plugin import CSSRNet
from csd_plugin.evaluation.timing import measure, peak_memory
from csd_plugin.losses.contrastive_loss import LAYER_WEIGHTS
from csd_plugin.losses.vgg import VGGFeatures
from csd_plugin.models.csd_model import CSDModel

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 64, "num_block": 16, "upscale": 4}


@dataclass(frozen=True)
class Setting:
    """A size to measure at.

    Attributes:
        backbone: options of the teacher.
        hr: side of the HR patches in pixels.
        batch: images a step.
        negatives: K.
        widths: the students.
        train: further options of the block `train`.
    """

    backbone: dict[str, Any]
    hr: int = 96
    batch: int = 4
    negatives: int = 4
    widths: tuple[float, ...] = (0.25,)
    train: tuple[tuple[str, Any], ...] = ()


def batch_of(setting: Setting) -> tuple[Tensor, Tensor]:
    """LR and HR patches."""
    scale = setting.backbone["upscale"]
    generator = torch.Generator().manual_seed(0)
    gt = torch.rand(setting.batch, 3, setting.hr, setting.hr, generator=generator)
    return F.interpolate(gt, scale_factor=1 / scale, mode="bicubic", antialias=True).clamp(0, 1), gt


def csd_model(setting: Setting, dist_of: tuple[int, int] | None = None) -> CSDModel:
    """The model that `basicsr train` would build, by option as a rank (number, ranks) of torch.distributed."""
    rank, ranks = dist_of or (0, 1)
    l1 = {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"}
    train: dict[str, Any] = {
        "total_iter": 10**6,
        "optim_g": {"type": "Adam", "lr": 1e-4},
        "scheduler": {"type": "MultiStepLR", "milestones": [10**6]},
        "pixel_opt": dict(l1),
        "teacher_opt": dict(l1),
        "contrastive_opt": {"type": "ContrastiveLoss", "loss_weight": 0.784, "vgg_weights": "random"},
        "negatives": {"source": "pool", "num": setting.negatives, "pool_size": max(setting.negatives, 1)},
        **dict(setting.train),
    }
    return CSDModel(
        {
            "name": "benchmark",
            "is_train": True,
            "dist": dist_of is not None,
            "num_gpu": int(torch.cuda.is_available()),
            "rank": rank,
            "world_size": ranks,
            "scale": setting.backbone["upscale"],
            "manual_seed": 0,
            "network_g": {"type": "CSSRNet", "width": list(setting.widths), "backbone": dict(setting.backbone)},
            "path": {},
            "train": train,
            "val": {"save_img": False},
        }
    )


def our_step(setting: Setting, dist_of: tuple[int, int] | None = None) -> Callable[[], None]:
    """A step of CSDModel, its pool of negatives filled."""
    csd = csd_model(setting, dist_of)
    lq, gt = batch_of(setting)
    steps = iter(range(1, 10**9))

    def step() -> None:
        csd.feed_data({"lq": lq, "gt": gt})
        csd.optimize_parameters(next(steps))

    while csd.negative_sampler.pool is None or len(csd.negative_sampler.pool) < setting.negatives:
        csd.negative_sampler.sample(csd.device_batch(lq), 1)
    return step


def reference_step(setting: Setting) -> Callable[[], None]:
    """The plain implementation; stock networks with the slices written out as `functional_call` on the teacher."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = CSSRNet(setting.backbone, setting.widths).to(device).train()
    vgg = VGGFeatures(tuple(LAYER_WEIGHTS), "random").to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, foreach=False)
    lq, gt = (t.to(device) for t in batch_of(setting))
    bicubic = F.interpolate(lq, scale_factor=setting.backbone["upscale"], mode="bicubic").clamp(0, 1)
    negatives = bicubic[torch.arange(setting.negatives) % setting.batch]

    def step() -> None:
        outputs = net(lq, width=(1.0, *setting.widths))
        loss = F.l1_loss(outputs[1.0], gt)
        for width in setting.widths:
            loss = loss + F.l1_loss(outputs[width], gt) + 0.784 * plain_contrast(vgg, outputs[width], outputs[1.0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def plain_contrast(vgg: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
        s, t, n = vgg(student), vgg(teacher), vgg(negatives)
        loss = student.new_zeros(())
        for name, weight in LAYER_WEIGHTS.items():
            pull = (s[name] - t[name].detach()).abs().mean()
            push = torch.abs(n[name][None] - s[name][:, None]).mean((0, 2, 3, 4)).sum()
            loss = loss + weight * pull / (push + 1e-7)
        return loss

    return step


def floor_passes(setting: Setting) -> dict[str, Callable[[], None]]:
    """The passes of the floor; each backward goes as far as the step's does."""
    csd = csd_model(setting)
    vgg = csd.cri_contrast.vgg if csd.cri_contrast is not None else None
    net = csd.net_g
    lq, gt = batch_of(setting)
    lq, gt = csd.device_batch(lq), csd.device_batch(gt)
    negatives = gt[:1].expand(setting.negatives, -1, -1, -1).contiguous(memory_format=csd.memory_format)
    passes: dict[str, Callable[[], None]] = {}
    for width in (1.0, *setting.widths):
        network = net.export(width).to(memory_format=csd.memory_format).train()

        def run(network: nn.Module = network) -> None:
            with csd.autocast():
                output = network(lq)
            output.backward(torch.ones_like(output))

        passes["teacher" if width == 1.0 else f"student {width:g}"] = run
    image = gt.clone(memory_format=csd.memory_format)

    def vgg_with_graph() -> None:
        with csd.autocast():
            features = vgg(image.requires_grad_())
        torch.autograd.backward(list(features.values()), [torch.ones_like(f) for f in features.values()])

    @torch.no_grad()
    def vgg_without_graph() -> None:
        with csd.autocast():
            vgg(gt)
            vgg(negatives)

    for width in setting.widths:
        passes[f"VGG, student {width:g}"] = vgg_with_graph
    passes["VGG, teacher and negatives"] = vgg_without_graph
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    passes["optimizer"] = lambda: csd.optimizer_g.step()
    return passes


def compare(setting: Setting, rounds: int = 7) -> dict[str, Any]:
    """Our step, its floor and the reference, side by side."""
    passes = floor_passes(setting)
    ours, reference = our_step(setting), reference_step(setting)
    times = measure({"ours": ours, "reference": reference, **passes}, rounds)
    floor = sum(times[name].median for name in passes)
    memory = {"ours": peak_memory(ours), "reference": peak_memory(reference)}
    return {
        "seconds": {name: time.median for name, time in times.items()},
        "spread": {name: time.spread for name, time in times.items()},
        "floor": floor,
        "over_floor": times["ours"].median / floor,
        "speedup": times["reference"].median / times["ours"].median,
        "memory_mib": memory,
        "memory_ratio": memory["ours"] / memory["reference"],
    }


CPU_SETTINGS = {
    "EDSR 64/16 x4, 0.25, HR 96, batch 4, K 4": Setting(EDSR),
    "the same, bf16": Setting(EDSR, train=(("amp", "bf16"),)),
    "batch 16, K 10": Setting(EDSR, 96, 16, 10),
    "batch 16, K 10, bf16": Setting(EDSR, 96, 16, 10, train=(("amp", "bf16"),)),
}
GPU_SETTINGS = {
    "EDSR 64/16 x4, 0.25, HR 192, batch 16, K 10, bf16": Setting(EDSR, 192, 16, 10, train=(("amp", "bf16"),)),
    "EDSR 256/32 x4, 0.25, HR 192, batch 16, K 10, bf16": Setting(
        {**EDSR, "num_feat": 256, "num_block": 32, "res_scale": 0.1}, 192, 16, 10, train=(("amp", "bf16"),)
    ),
    "EDSR 64/16 x4, 0.25, HR 192, batch 16, K 10, bf16, compiled": Setting(
        EDSR, 192, 16, 10, train=(("amp", "bf16"), ("compile", True))
    ),
}


def main() -> None:
    """Compare the steps on what the machine has."""
    settings = GPU_SETTINGS if torch.cuda.is_available() else CPU_SETTINGS
    results = {name: compare(setting) for name, setting in settings.items()}
    rows = [
        [
            name,
            f"{r['over_floor']:.2f}",
            f"{r['speedup']:.2f}",
            f"{r['memory_ratio']:.2f}",
            f"{max(r['spread'].values()):.0%}",
        ]
        for name, r in results.items()
    ]
    head = ["step", "over its floor", "faster than the reference", "peak memory / reference", "largest spread"]
    report("step", "One training step", table(head, rows), {"steps": results})


if __name__ == "__main__":
    main()
