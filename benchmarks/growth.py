"""How a step grows with K, batch, patch and students: `python -m benchmarks.growth`.

Time and memory are given over those of the smallest setting, beside the multiply-accumulates that a step has to do.
"""

from dataclasses import replace
from typing import Any

from benchmarks.report import RESULTS, report, table
from benchmarks.step import EDSR, Setting, our_step
from csd_plugin import CSSRNet
from csd_plugin.evaluation.complexity import count_macs
from csd_plugin.evaluation.timing import measure, peak_memory
from csd_plugin.losses.contrastive_loss import LAYER_WEIGHTS
from csd_plugin.losses.vgg import VGGFeatures

BASE = Setting(EDSR)
SERIES: dict[str, list[Setting]] = {
    "K": [replace(BASE, negatives=k) for k in (1, 4, 8, 16, 32)],
    "batch": [replace(BASE, batch=b) for b in (1, 2, 4, 8)],
    "HR pixels": [replace(BASE, hr=side) for side in (48, 96, 144, 192)],
    "students": [replace(BASE, widths=w) for w in ((0.25,), (0.25, 0.5), (0.25, 0.5, 0.75))],
}


def work(setting: Setting) -> int:
    """Multiply-accumulates of a step: a backward pass costs two forward passes, or one if only the input needs it."""
    net = CSSRNet(setting.backbone, setting.widths)
    lr = setting.hr // setting.backbone["upscale"]
    networks = sum(count_macs(net.export(width), (3, lr, lr)) for width in (1.0, *setting.widths))
    vgg = count_macs(VGGFeatures(tuple(LAYER_WEIGHTS), "random").features, (3, setting.hr, setting.hr))
    return (
        3 * setting.batch * networks
        + 2 * setting.batch * len(setting.widths) * vgg
        + (setting.batch + setting.negatives) * vgg
    )


def _size(series: str, setting: Setting) -> int:
    return {
        "K": setting.negatives,
        "batch": setting.batch,
        "HR pixels": setting.hr**2,
        "students": len(setting.widths),
    }[series]


def plot(results: dict[str, list[dict[str, float]]]) -> None:
    """Time and memory against the counted work, a panel a series."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(results), figsize=(3.2 * len(results), 3), constrained_layout=True)
    for panel, (series, points) in zip(panels, results.items(), strict=True):
        sizes = [point["size"] for point in points]
        for key, style in (("work", "k--"), ("time", "o-"), ("memory", "s-")):
            panel.plot(sizes, [point[key] for point in points], style, label=key, markersize=4)
        panel.set_xlabel(series)
        panel.set_ylim(bottom=0)
    panels[0].set_ylabel("over the first setting")
    panels[0].legend()
    RESULTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(RESULTS / "growth.png", dpi=110)


def main() -> None:
    """Measure every series; its settings take turns."""
    results: dict[str, list[dict[str, float]]] = {}
    rows = []
    for series, settings in SERIES.items():
        steps = {str(i): our_step(setting) for i, setting in enumerate(settings)}
        times = measure(steps, rounds=5, warmup=1)
        memory = [peak_memory(step) for step in steps.values()]
        results[series] = []
        for i, setting in enumerate(settings):
            point: dict[str, Any] = {
                "size": _size(series, setting),
                "work": work(setting) / work(settings[0]),
                "time": times[str(i)].median / times["0"].median,
                "memory": memory[i] / memory[0],
            }
            results[series].append(point)
            rows.append([f"{series} {point['size']}", *(f"{point[key]:.2f}" for key in ("work", "time", "memory"))])
    plot(results)
    report("growth", "Growth of a step", table(["setting", "work", "time", "memory"], rows), {"growth": results})


if __name__ == "__main__":
    main()
