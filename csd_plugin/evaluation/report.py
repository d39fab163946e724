"""`basicsr report`: a run on one page, which needs no network and no other file."""

import argparse
import base64
import io
import json
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import cv2
import numpy as np
import yaml
from basicsr.utils import tensor2img

from csd_plugin.archs.cssr_arch import CSSRNet
from csd_plugin.checkpoint import write_atomically
from csd_plugin.config.experiment import training_run
from csd_plugin.errors import OptionError
from csd_plugin.evaluation.curves import Curve, read_curves
from csd_plugin.evaluation.sheet import most_different_patch
from csd_plugin.evaluation.svg import line_chart, scatter_chart
from csd_plugin.evaluation.trained import (
    MACS_AT,
    Method,
    load_network,
    methods_of,
    super_resolved,
    validation_images,
)

_TEMPLATE = Path(__file__).with_name("report.html")
_LARGEST = 480  # side of a picture in the sliders, in HR pixels
_QUALITY = 95  # of WebP
_SIZE = "x".join(map(str, MACS_AT))
_FIGURE = Template("""<figure class="slider"><figcaption>$title</figcaption>
<div class="choice"><select aria-label="$title, left">$left</select>
<select aria-label="$title, right">$right</select></div>
<div class="stage" style="aspect-ratio: $width / $height"><img class="under" alt=""><img class="over" alt="">
<input type="range" min="0" max="100" step="1" value="50" aria-label="$title: where left and right meet"></div>
<script type="application/json">$sources</script></figure>
""")
Pictures = dict[str, dict[str, np.ndarray]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `basicsr report`."""
    parser.epilog = "example: basicsr report experiments/csd_demo"
    parser.add_argument("experiment", type=Path, help="folder in experiments/, or the run's option file")
    parser.add_argument("--checkpoint", default="latest", metavar="ITER", help="iteration (default: latest)")
    parser.add_argument("-o", "--output", type=Path, help="HTML file (default: report.html in the experiment's folder)")
    parser.add_argument("--images", type=int, default=4, help="images to look at (default: 4)")
    parser.add_argument("--png", action="store_true", help="charts as PNG files beside it (needs matplotlib)")


def run(args: argparse.Namespace) -> None:
    """Write the page.

    Raises:
        OptionError: no such run or checkpoint, or nothing to validate on.
    """
    options, experiment = training_run(args.experiment)
    network = load_network(options["network_g"], experiment / "models" / f"net_g_{args.checkpoint}.pth")
    curves = read_curves(experiment.parent.parent / "tb_logger" / str(options["name"]))
    methods, pictures = _rated(network, options, args.images)
    target = args.output or experiment / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    charts = _charts(curves, methods)
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(str(options["name"])),
        about=escape(_about(options, network)),
        cards=_cards(methods),
        sliders="".join(_slider(name, images) for name, images in pictures.items()),
        table=_table(methods),
        note=f"Y channel, mean over the validation images; multiply-accumulates for one {_SIZE} image.",
        charts="".join(f"<section><h3>{escape(title)}</h3>{chart}</section>" for title, chart in charts.items()),
        options=escape(yaml.safe_dump(options, sort_keys=False, allow_unicode=True)),
    )
    write_atomically(page.encode(), target)
    sys.stdout.write(f"{target}\n")
    if args.png:
        for path in _write_png(curves, methods, target):
            sys.stdout.write(f"{path}\n")


def _rated(network: CSSRNet, options: Mapping[str, Any], wanted: int) -> tuple[dict[float | None, Method], Pictures]:
    """Every method rated on every validation image, and pictures of the first ones by name and method."""
    methods = methods_of(network)
    pictures: Pictures = {}
    for name, lq, hr in validation_images(options):
        outputs = super_resolved(network, lq, options["scale"])
        for width, method in methods.items():
            method.rate(outputs[width], hr, options["scale"])
        if len(pictures) < wanted:
            named = {f"{methods[w].name}, {methods[w].psnr[-1]:.2f} dB": image for w, image in outputs.items()}
            pictures[name] = _cut({"LR": tensor2img(lq), **named, "HR": hr}, options["scale"])
    return methods, pictures


def _cut(images: dict[str, np.ndarray], scale: int) -> dict[str, np.ndarray]:
    """The part of large pictures in which bicubic and the student differ most."""
    low, bicubic, student, *_ = images.values()
    height, width = bicubic.shape[:2]
    side = min(_LARGEST - _LARGEST % scale, height, width)
    if max(height, width) <= _LARGEST:
        return images
    top, left = (n - n % scale for n in most_different_patch(bicubic, student, side))

    def part(image: np.ndarray) -> np.ndarray:
        factor = scale if image is low else 1
        return image[top // factor : (top + side) // factor, left // factor : (left + side) // factor]

    return {name: part(image) for name, image in images.items()}


def _about(options: Mapping[str, Any], network: CSSRNet) -> str:
    backbone = options["network_g"]["backbone"]["type"]
    widths = ", ".join(f"{width:g}" for width in network.widths)
    iterations = (options.get("train") or {}).get("total_iter")
    trained = f", {iterations:,} iterations" if iterations else ""
    return f"{backbone} x{options['scale']}, student at width {widths}{trained}"


def _cards(methods: Mapping[float | None, Method]) -> str:
    teacher = list(methods.values())[-1]
    cards = []
    for width, method in methods.items():
        if width is None or method is teacher:
            continue
        assert method.parameters and method.macs and teacher.parameters and teacher.macs
        cards += [
            (f"{np.mean(method.psnr):.2f} dB", f"PSNR of the {method.name}"),
            (f"{np.mean(method.psnr) - np.mean(teacher.psnr):+.2f} dB", f"{method.name} against the teacher"),
            (f"{teacher.parameters / method.parameters:.1f}x", f"fewer parameters, {method.name}"),
            (f"{teacher.macs / method.macs:.1f}x", f"fewer multiply-accumulates, {method.name}"),
        ]
    return "".join(f"<div><b>{escape(value)}</b>{escape(label)}</div>" for value, label in cards)


def _table(methods: Mapping[float | None, Method]) -> str:
    rows = []
    for method in methods.values():
        cost = ["", ""]
        if method.parameters is not None and method.macs is not None:
            cost = [f"{method.parameters:,}", f"{method.macs / 1e9:.2f} G"]
        cells = [f"{np.mean(method.psnr):.2f}", f"{np.mean(method.ssim):.4f}", *cost]
        rows.append(f"<tr><td>{escape(method.name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{label}</th>" for label in ("", "PSNR (dB)", "SSIM", "parameters", "MACs"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _charts(curves: Mapping[str, Curve], methods: Mapping[float | None, Method]) -> dict[str, str]:
    """SVG of each chart by its heading."""
    charts = {title: line_chart(series, x, y) for title, x, y, series in line_series(curves)}
    charts["Quality against size"] = scatter_chart(trade_off(methods), "parameters", "PSNR (dB)")
    return charts


def line_series(curves: Mapping[str, Curve]) -> list[tuple[str, str, str, dict[str, Curve]]]:
    """Title, axis labels and series of each chart of lines: a chart for each metric, one for the losses."""
    metrics: dict[str, dict[str, Curve]] = {}
    losses: dict[str, Curve] = {}
    for tag, points in curves.items():
        kind, _, name = tag.partition("/")
        if kind == "metrics":
            dataset, _, metric = name.rpartition("/")
            metrics.setdefault(metric, {})[dataset] = points
        elif kind == "losses":
            losses[name] = points
    charts = [(metric.upper(), "iterations", metric, series) for metric, series in metrics.items()]
    charts += [(f"Loss {name}", "iterations", name, {name: points}) for name, points in losses.items()]
    return charts


def trade_off(methods: Mapping[float | None, Method]) -> dict[str, tuple[float, float]]:
    """Parameters and PSNR of what has parameters."""
    return {m.name: (float(m.parameters), float(np.mean(m.psnr))) for m in methods.values() if m.parameters}


def _slider(name: str, images: Mapping[str, np.ndarray]) -> str:
    sources = {label: _data_uri(image, lossless=label == "LR") for label, image in images.items()}
    labels = list(images)
    left, right = labels[1], labels[2]
    height, width = images["HR"].shape[:2]

    def choices(selected: str) -> str:
        marks = {label: " selected" if label == selected else "" for label in labels}
        return "".join(f'<option value="{escape(key)}"{mark}>{escape(key)}</option>' for key, mark in marks.items())

    return _FIGURE.substitute(
        title=escape(name),
        left=choices(left),
        right=choices(right),
        width=width,
        height=height,
        sources=json.dumps(sources).replace("<", "\\u003c"),
    )


def _data_uri(image: np.ndarray, lossless: bool) -> str:
    settings = [] if lossless else [cv2.IMWRITE_WEBP_QUALITY, _QUALITY]
    suffix = ".png" if lossless else ".webp"
    _, data = cv2.imencode(suffix, np.ascontiguousarray(image), settings)
    return f"data:image/{suffix[1:]};base64,{base64.b64encode(data.tobytes()).decode()}"


def _write_png(curves: Mapping[str, Curve], methods: Mapping[float | None, Method], page: Path) -> list[Path]:
    """The charts as `<page>_curves.png` and `<page>_tradeoff.png`."""
    try:
        import matplotlib
    except ImportError:
        raise OptionError("matplotlib is not installed: pip install matplotlib (option --png)") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    charts = line_series(curves)
    written = []
    if charts:
        figure, panels = pyplot.subplots(
            1, len(charts), figsize=(3.6 * len(charts), 3), constrained_layout=True, squeeze=False
        )
        for panel, (title, x_label, _, series) in zip(panels[0], charts, strict=True):
            for name, points in series.items():
                panel.plot(*zip(*points, strict=True), label=name)
            panel.set_title(title, fontsize=9)
            panel.set_xlabel(x_label)
            panel.legend(fontsize=7)
        written.append(_save(figure, page.with_name(f"{page.stem}_curves.png")))
    figure, panel = pyplot.subplots(figsize=(4.5, 3.2), constrained_layout=True)
    for name, (parameters, psnr) in trade_off(methods).items():
        panel.semilogx(parameters, psnr, "o", label=name)
    panel.set_xlabel("parameters")
    panel.set_ylabel("PSNR (dB)")
    panel.legend(fontsize=8)
    written.append(_save(figure, page.with_name(f"{page.stem}_tradeoff.png")))
    pyplot.close("all")
    return written


def _save(figure: Any, path: Path) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=200, format="png")
    write_atomically(buffer.getvalue(), path)
    return path
