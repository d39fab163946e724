"""`basicsr profile`: what teacher and students cost, counted and measured."""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from csd_plugin.archs.cssr_arch import TEACHER, CSSRNet
from csd_plugin.config.load import YAML_SUFFIXES, read_options
from csd_plugin.errors import OptionError
from csd_plugin.evaluation.complexity import count
from csd_plugin.evaluation.timing import measure
from csd_plugin.slicing.widths import backbone_options, build_backbone, example_inputs, size_multiple

_SIZE = (180, 320)
_MEASURED_MACS = {"cpu": 8e9, "cuda": 3e12}  # of the widest network, so that a profile takes seconds


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        name: `teacher`, `student` or the architecture's name.
        width: its width.
        parameters: counted.
        macs: multiply-accumulates, counted at `size`.
        activations: outputs of convolutions and matrix products, counted at `size`.
        size: shape of the input without the batch.
        memory: bytes of the tensors that live at once at `size`, counted.
        seconds: median latency at `measured_size`; None if it was not measured.
        measured_size: shape of the input that was run.
    """

    name: str
    width: float
    parameters: int
    macs: int
    activations: int
    memory: int
    size: tuple[int, ...]
    seconds: float | None = None
    measured_size: tuple[int, ...] | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `basicsr profile`."""
    parser.epilog = "example: basicsr profile options/csd_edsr_x4.yml --plot edsr.png"
    parser.add_argument("file", type=Path, help="option file")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="LR size (default: 180 320)")
    parser.add_argument("--counts-only", action="store_true", help="do not measure latency")
    parser.add_argument("--measure-size", type=int, nargs=2, metavar=("H", "W"), help="LR size that is run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a JSON file as well")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a plot (needs matplotlib)")


def run(args: argparse.Namespace) -> None:
    """Print the table, and write the files asked for.

    Raises:
        OptionError: no option file, a network that cannot be built, or a size that it does not take.
    """
    if args.file.suffix not in YAML_SUFFIXES:
        raise OptionError(f"expected an option file that ends with .yml, got {args.file}")
    options = read_options(args.file)
    if not isinstance(options.get("network_g"), Mapping):
        raise OptionError(f"{args.file}: missing option network_g")
    networks, teacher = networks_of(options["network_g"])
    multiple = size_multiple(teacher)
    for option in ("size", "measure_size"):
        _check_size(getattr(args, option), f"--{option.replace('_', '-')}", multiple)
    frames = _frames(teacher)
    costs = count_all(networks, (*frames, *(args.size or (side + -side % multiple for side in _SIZE))))
    if not args.counts_only:
        size = args.measure_size or measured_size(costs[0], multiple)
        costs = measure_all(networks, costs, (*frames, *size))
    sys.stdout.write(f"{text_table(costs)}\n")
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=1) + "\n", encoding="utf-8")
    if args.plot is not None:
        plot(costs, args.plot)


def networks_of(network_g: Mapping[str, Any]) -> tuple[dict[tuple[str, float], nn.Module], dict[str, Any]]:
    """Stock networks by name and width, the widest first, and the options of the widest.

    Args:
        network_g: block of an option file, of CSSRNet or of a stock network.
    """
    if network_g.get("type") != "CSSRNet":
        options = backbone_options(network_g)
        return {(str(options["type"]), TEACHER): build_backbone(options).eval()}, options
    network = CSSRNet.from_options(network_g).eval()
    names = {TEACHER: "teacher", **network.students}
    widths = sorted(names, reverse=True)
    return {(names[width], width): network.export(width) for width in widths}, network.options[TEACHER]


def count_all(networks: Mapping[tuple[str, float], nn.Module], size: tuple[int, ...]) -> list[Cost]:
    """Counts for an input of a size (C, H, W) or (T, C, H, W)."""
    costs = []
    for (name, width), network in networks.items():
        counts = count(network, size)
        costs.append(Cost(name, width, counts.parameters, counts.macs, counts.activations, counts.memory, tuple(size)))
    return costs


def measured_size(widest: Cost, multiple: int) -> tuple[int, int]:
    """Height and width to measure at: those that were counted at, halved until the widest network is quick."""
    limit = _MEASURED_MACS["cuda" if torch.cuda.is_available() else "cpu"]
    height, width = widest.size[-2:]
    macs = widest.macs
    while macs > limit and min(height, width) >= 2 * max(16, multiple):
        height, width, macs = height // 2, width // 2, macs // 4
    return height - height % multiple, width - width % multiple


def measure_all(
    networks: Mapping[tuple[str, float], nn.Module], costs: list[Cost], size: tuple[int, ...]
) -> list[Cost]:
    """The costs with latency at a size, measured in turns."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.rand(1, *size, device=device)
    runs = {f"{cost.width}": _forward(networks[cost.name, cost.width].to(device), x) for cost in costs}
    times = measure(runs, rounds=5, warmup=1)
    return [replace(cost, seconds=times[f"{cost.width}"].median, measured_size=tuple(size)) for cost in costs]


def _forward(network: nn.Module, x: Tensor) -> Any:
    return torch.no_grad()(partial(network, x))


def text_table(costs: list[Cost]) -> str:
    """The costs as lines; ratios are the widest network's over each."""
    widest = costs[0]
    measured = widest.seconds is not None
    head = f"{'':16}{'width':>6}{'parameters':>13}{'MACs':>12}{'activations':>13}{'memory':>11}"
    head += f"{'smaller':>9}{'fewer MACs':>12}"
    lines = [head + (f"{'latency':>12}{'faster':>8}" if measured else "")]
    for cost in costs:
        line = f"{cost.name:16}{cost.width:>6g}{cost.parameters:>13,}{cost.macs / 1e9:>10.2f} G"
        line += f"{cost.activations / 1e6:>11.1f} M{cost.memory / 2**20:>7.0f} MiB"
        line += f"{widest.parameters / cost.parameters:>8.2f}x{widest.macs / cost.macs:>11.2f}x"
        if cost.seconds is not None and widest.seconds is not None:
            line += f"{cost.seconds * 1e3:>9.1f} ms{widest.seconds / cost.seconds:>7.2f}x"
        lines.append(line)
    note = f"counted for one {_shape(widest.size)} input in float32"
    if widest.measured_size is not None:
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
        note += f"; latency measured at {_shape(widest.measured_size)} on {where}"
    return "\n".join([*lines, note])


def plot(costs: list[Cost], path: Path) -> None:
    """Parameters, MACs and latency of each network over those of the widest.

    Raises:
        OptionError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise OptionError("matplotlib is not installed: pip install matplotlib (option --plot)") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    series: dict[str, list[float]] = {"parameters": [c.parameters for c in costs], "MACs": [c.macs for c in costs]}
    if costs[0].seconds is not None:
        series["latency"] = [c.seconds or 0 for c in costs]
    figure, panel = pyplot.subplots(figsize=(6, 3.5), constrained_layout=True)
    thickness = 0.8 / len(series)
    for number, (label, values) in enumerate(series.items()):
        places = [i + number * thickness for i in range(len(costs))]
        bars = panel.barh(places, [value / values[0] for value in values], thickness, label=label)
        panel.bar_label(bars, [f"{value / values[0]:.2f}" for value in values], padding=2, fontsize=8)
    panel.set_yticks([i + 0.4 - thickness / 2 for i in range(len(costs))], [f"{c.name} {c.width:g}x" for c in costs])
    panel.set_xlim(right=1.12)
    panel.invert_yaxis()
    panel.set_xlabel("over the widest network's")
    panel.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _frames(options: Mapping[str, Any]) -> tuple[int, ...]:
    """Shape of an input without height and width."""
    inputs = example_inputs(options)
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        raise OptionError("profile takes networks with one input")
    return tuple(inputs[0].shape[1:-2])


def _check_size(size: list[int] | None, option: str, multiple: int) -> None:
    if size is not None and any(side < 1 or side % multiple for side in size):
        raise OptionError(f"expected multiples of {multiple}, got {size[0]} {size[1]} (option {option})")


def _shape(size: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in size)
