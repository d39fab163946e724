"""docs/quality.md and its plots from the results of the runs: nothing in them is written by hand."""

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from basicsr.archs import build_network

from benchmarks.quality.recipe import HERE, TEACHER_ARM, Recipe, load_recipe, recipe_names
from benchmarks.quality.runs import RESULTS
from benchmarks.report import machine, table
from csd_plugin.evaluation.complexity import count_parameters
from csd_plugin.evaluation.timing import measure

DOCUMENT = HERE.parent.parent / "docs" / "quality.md"
_LATENCY_SIZE = (120, 160)
_CONTROLS = ("scratch", "sliced_l1")
_COMPARED = (*_CONTROLS, "logits_kd", "joint", "csd", "csd_finetuned")  # in the plots; the tables have all
Result = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """The results of a recipe.

    Attributes:
        recipe: the recipe.
        by_run: content of the result files by name.
    """

    recipe: Recipe
    by_run: dict[str, Result]

    @classmethod
    def read(cls, name: str, folder: Path = RESULTS) -> "Results":
        """Read all results of a recipe."""
        files = sorted((folder / name).glob("*.json"))
        found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
        return cls(load_recipe(name), {key: value for key, value in found.items() if "arm" in value})

    @property
    def teacher(self) -> Result:
        """The result of the teacher's own training."""
        return self.by_run[TEACHER_ARM]

    @property
    def sets(self) -> list[str]:
        """What the runs were rated on: the test sets, or the held-out photographs where there are none."""
        return list(self.recipe.data.tests) or ["held_out"]

    @cached_property
    def arms(self) -> list[str]:
        """The arms that have a result, in the recipe's order."""
        return [arm for arm in self.recipe.arms if any(r["arm"] == arm for r in self.by_run.values())]

    def of(self, arm: str) -> dict[int, Result]:
        """Results of an arm by seed."""
        return {r["seed"]: r for r in self.by_run.values() if r["arm"] == arm}

    def values(self, arm: str, role: str, name: str, metric: str) -> dict[int, float]:
        """A metric on a set by seed."""
        found = {seed: r["rating"].get(role, {}).get(name, {}).get(metric) for seed, r in self.of(arm).items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def gain(self, arm: str, over: str, metric: str = "psnr") -> list[float]:
        """Difference to another arm with the same seed, mean over the sets."""
        common = sorted(set(self.of(arm)) & set(self.of(over)))
        return [
            statistics.mean(
                self.values(arm, "student", name, metric)[seed] - self.values(over, "student", name, metric)[seed]
                for name in self.sets
            )
            for seed in common
        ]

    def network(self, arm: str) -> dict[str, Any]:
        """The block `network_g` of the stock network of an arm."""
        result = self.teacher if arm == TEACHER_ARM else next(iter(self.of(arm).values()))
        return result["network"]


def spread(values: Sequence[float], digits: int = 2, sign: bool = False) -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):{'+' if sign else ''}.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def render(folder: Path = RESULTS) -> str:
    """The text of docs/quality.md."""
    parts = [(HERE / "intro.md").read_text(encoding="utf-8").rstrip()]
    for name in sorted(recipe_names(), key=lambda name: load_recipe(name).rank):
        results = Results.read(name, folder)
        if TEACHER_ARM in results.by_run and results.arms:
            parts.extend(_section(results))
        else:
            parts.append(f"## {results.recipe.title}\n\n{results.recipe.about.strip()}\n\nNot run yet.")
    return "\n\n".join(parts) + "\n"


def _section(results: Results) -> Iterator[str]:
    recipe = results.recipe
    yield f"## {recipe.title}"
    yield recipe.about.strip()
    yield _setting(results)
    if recipe.finding:
        yield recipe.finding.strip()
    yield f"![PSNR against iterations](quality_{recipe.name}.png)"
    yield _student_table(results)
    if any(results.values(arm, "student", results.sets[0], "ssim") for arm in results.arms):
        yield _detail_table(results)
    yield _teacher_table(results)
    yield _arm_list(results)


def _setting(results: Results) -> str:
    teacher, recipe = results.teacher, results.recipe
    first = next(iter(results.by_run.values()))
    train = recipe.options["train"]
    data = recipe.options["datasets"]["train"]
    about = first["machine"]
    alone = f"{teacher['options'][0]['train']['total_iter']} iterations alone"
    if recipe.data.teacher is not None:
        alone = f"`{recipe.data.teacher}`"
    return (
        f"Teacher: {count(results, TEACHER_ARM):,} parameters, {alone}. Students: {train['total_iter']} iterations "
        f"with batches of {data['batch_size_per_gpu']} patches of {data['gt_size']} pixels, learning rate "
        f"{train['optim_g']['lr']:g} ({train['scheduler']['type']}). "
        f"Trained on {about['gpu'] or about['processor']}, torch {about['torch']}. "
        f"`python -m benchmarks.quality run {recipe.name} --data DATA` runs it, "
        f"with `--arms csd --seeds 0` one arm."
    )


def count(results: Results, arm: str) -> int:
    """Parameters of the network that an arm gives."""
    return count_parameters(build_network(dict(results.network(arm))))


def _student_table(results: Results) -> str:
    controls = [arm for arm in _CONTROLS if arm in results.arms]
    head = ["PSNR (dB, Y)", "seeds", *results.sets, *(f"over {control}" for control in controls)]
    baseline = results.teacher["rating"]
    rows = [
        [name, "", *(f"{baseline[name][s]['psnr']:.2f}" for s in results.sets), *("" for _ in controls)]
        for name in ("bicubic", "teacher")
    ]
    for arm in results.arms:
        gains = [spread(results.gain(arm, c), 3, sign=True) if arm != c else "" for c in controls]
        means = [spread(list(results.values(arm, "student", s, "psnr").values())) for s in results.sets]
        rows.append([f"`{arm}`", str(len(results.of(arm))), *means, *gains])
    note = "Mean and standard deviation over the seeds; gains are paired by seed and are means over the sets."
    return f"{table(head, rows)}\n\n{note}"


def _detail_table(results: Results) -> str:
    head = ["", *(f"{s}, PSNR with self-ensemble" for s in results.sets), *(f"{s}, SSIM" for s in results.sets)]
    baseline = results.teacher["rating"]
    metrics = (("psnr_ensemble", 2), ("ssim", 4))
    rows = [["teacher", *(f"{baseline['teacher'][s][m]:.{d}f}" for m, d in metrics for s in results.sets)]]
    for arm in results.arms:
        cells = [
            spread(list(results.values(arm, "student", s, m).values()), d) for m, d in metrics for s in results.sets
        ]
        rows.append([f"`{arm}`", *cells])
    return table(head, rows)


def _teacher_table(results: Results) -> str:
    head = ["the teacher after", *results.sets]
    rows = [["its own training", *(f"{results.teacher['rating']['teacher'][s]['psnr']:.2f}" for s in results.sets)]]
    for arm in results.arms:
        if results.values(arm, "teacher", results.sets[0], "psnr"):
            means = [spread(list(results.values(arm, "teacher", s, "psnr").values())) for s in results.sets]
            rows.append([f"`{arm}`", *means])
    return table(head, rows)


def _arm_list(results: Results) -> str:
    return "\n".join(f"* `{arm}`: {results.recipe.arm(arm).about}" for arm in results.arms)


def plot(results: Results, target: Path) -> None:
    """PSNR against iterations, against parameters and against latency.

    Args:
        results: of a recipe.
        target: PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(13, 4), constrained_layout=True)
    for arm in _COMPARED:
        curves = [dict(map(tuple, r["curves"]["held_out/psnr"])) for r in results.of(arm).values()]
        steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
        if steps:
            panels[0].plot(steps, [statistics.mean(c[s] for c in curves) for s in steps], "o-", label=arm, markersize=3)
    panels[0].set_xlabel("student updates")
    panels[0].set_ylabel("PSNR on the held-out photographs (dB)")
    panels[0].legend(fontsize=7)
    latency = read_latency(results.recipe.name)
    _trade_off(panels[1], results, lambda arm: count(results, arm), "parameters")
    if latency:
        _trade_off(panels[2], results, lambda arm: latency[arm] / latency[TEACHER_ARM], "latency / teacher's")
    figure.savefig(target, dpi=100)


def measure_latency(name: str) -> None:
    """Time the networks of a recipe that has been run, side by side, and write `latency.json` beside its results.

    Args:
        name: of the recipe.
    """
    results = Results.read(name)
    x = torch.rand(1, 3, *_LATENCY_SIZE)
    runs: dict[str, Callable[[], Any]] = {}
    arms_of: dict[str, list[str]] = {}
    for arm in (TEACHER_ARM, *results.arms):
        key = json.dumps(results.network(arm))
        arms_of.setdefault(key, []).append(arm)
        runs[key] = torch.no_grad()(partial(build_network(dict(results.network(arm))).eval(), x))
    times = measure(runs, rounds=15, warmup=2)
    seconds = {arm: times[key].median for key, arms in arms_of.items() for arm in arms}
    about = {"machine": machine(), "size": [3, *_LATENCY_SIZE], "seconds": seconds}
    (RESULTS / name / "latency.json").write_text(f"{json.dumps(about, indent=1)}\n", encoding="utf-8")


def read_latency(name: str) -> dict[str, float]:
    """Seconds by arm, empty where they have not been measured."""
    file = RESULTS / name / "latency.json"
    return json.loads(file.read_text(encoding="utf-8"))["seconds"] if file.is_file() else {}


def _trade_off(panel: Any, results: Results, size: Callable[[str], float], label: str) -> None:
    """A line for each way to the students of all sizes, as Fig. 4 of the paper; the teacher and bicubic beside them."""
    name = results.sets[-1]
    for arm in _COMPARED:
        sizes = [a for a in (arm, f"{arm}_half") if a in results.arms]
        values = [statistics.mean(results.values(a, "student", name, "psnr").values()) for a in sizes]
        if sizes:
            panel.plot([size(a) for a in sizes], values, "o-", label=arm, markersize=4)
    teacher = results.teacher["rating"][TEACHER_ARM][name]["psnr"]
    panel.plot(size(TEACHER_ARM), teacher, "k*", label=TEACHER_ARM, markersize=9)
    panel.axhline(results.teacher["rating"]["bicubic"][name]["psnr"], linestyle=":", color="grey", label="bicubic")
    panel.set_xscale("log")
    ticks = sorted({size(arm) for arm in (TEACHER_ARM, *results.arms)})
    panel.set_xticks(ticks, [f"{tick:,.0f}" if tick > 1 else f"{tick:.2f}" for tick in ticks])
    panel.minorticks_off()
    panel.set_xlabel(label)
    panel.set_ylabel(f"PSNR on {name} (dB)")
    panel.legend(fontsize=7)


def write_document() -> None:
    """Write docs/quality.md and a plot for each recipe that has results."""
    for name in recipe_names():
        results = Results.read(name)
        if TEACHER_ARM in results.by_run and results.arms:
            plot(results, DOCUMENT.parent / f"quality_{name}.png")
    DOCUMENT.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"written to {DOCUMENT}\n")
