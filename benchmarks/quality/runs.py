"""Running arms through `basicsr train`, side by side, so that they can be cut at any moment and gone on with."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.quality.rating import bicubic, rate
from benchmarks.quality.recipe import HERE, TEACHER_ARM, Run, Stage, stock_network
from benchmarks.report import machine
from csd_plugin import OptionError
from csd_plugin.checkpoint import write_atomically
from csd_plugin.deploy.formats import load_network
from csd_plugin.evaluation.curves import read_curves

RESULTS = HERE / "results"
_LOSS_POINTS = 12


def result_file(run: Run, results: Path = RESULTS) -> Path:
    """Where the result of a run is kept."""
    return results / run.recipe.name / f"{run.name}.json"


class Runner:
    """Trains runs in `work`, `jobs` at a time.

    Args:
        work: the recipe's work folder, which has `data`.
        threads: threads of each process.
        until: `time.monotonic()` after which nothing is begun and what runs is cut, to be gone on with.
    """

    def __init__(self, work: Path, threads: int, until: float = float("inf"), results: Path = RESULTS) -> None:
        self.work = work
        self.results = results
        self.until = until
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        self._say_lock = threading.Lock()

    def all(self, runs: Sequence[Run], jobs: int) -> int:
        """Train and rate runs, the teacher first; those with a result are left alone.

        Returns:
            How many failed or were cut.
        """
        teachers = [run for run in runs if run.arm == TEACHER_ARM]
        others = [run for run in runs if run.arm != TEACHER_ARM]
        unfinished = 0
        for group in (teachers, others):
            with ThreadPoolExecutor(jobs) as pool:
                unfinished += sum(not done for done in pool.map(self.one, group))
            if unfinished:
                return unfinished + (len(others) if group is teachers else 0)
        return 0

    def one(self, run: Run) -> bool:
        """Train and rate a run; whether it has a result now.

        Raises:
            OptionError: there is a result of other options.
        """
        file = result_file(run, self.results)
        stages = run.stages()
        configuration = [stage.options for stage in stages]
        if file.is_file():
            if json.loads(file.read_text(encoding="utf-8"))["options"] != configuration:
                raise OptionError(f"{file} is of other options: remove it to train {run.name} anew")
            return True
        if not all(self._train(run, stage) for stage in stages):
            return False
        if not self._call(run, ["benchmarks.quality", "rate", run.recipe.name, run.name, "--work", str(self.work)]):
            return False
        rating = json.loads((self.work / "ratings" / f"{run.name}.json").read_text(encoding="utf-8"))
        result = {
            "arm": run.arm,
            "seed": run.seed,
            "options": configuration,
            "network": stages[-1].network,
            "curves": self._curves(stages),
            "rating": rating,
            "machine": machine(),
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(_compact(result).encode(), file)
        self._say(f"{run.name}: {_line(rating)}")
        return True

    def _train(self, run: Run, stage: Stage) -> bool:
        name = stage.options["name"]
        if (self.work / stage.result).is_file():
            return True
        option_file = self.work / "options" / f"{name}.yml"
        text = yaml.safe_dump(stage.options, sort_keys=False)
        if option_file.is_file() and option_file.read_text(encoding="utf-8") != text:
            raise OptionError(f"{option_file} is of other options: remove it and experiments/{name} to train it anew")
        option_file.parent.mkdir(parents=True, exist_ok=True)
        option_file.write_text(text, encoding="utf-8")
        return self._call(run, ["csd_plugin", "train", "-opt", f"options/{name}.yml", "--auto_resume"], cwd=self.work)

    def _call(self, run: Run, arguments: list[str], cwd: Path | None = None) -> bool:
        """Run a module of ours; whether it succeeded. What it prints goes to `<work>/logs`."""
        left = self.until - time.monotonic()
        if left <= 0:
            return False
        log = self.work / "logs" / f"{run.name}.log"
        log.parent.mkdir(exist_ok=True)
        start = time.monotonic()
        with log.open("a", encoding="utf-8") as stream:
            try:
                done = subprocess.run(
                    [sys.executable, "-m", *arguments],
                    cwd=cwd,
                    env=self.environment,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    timeout=None if left == float("inf") else left,
                )
            except subprocess.TimeoutExpired:
                self._say(f"{run.name}: cut, to be gone on with")
                return False
        if done.returncode:
            last = (log.read_text(encoding="utf-8").strip() or "no output").splitlines()[-1]
            self._say(f"{run.name}: failed ({log}): {last}")
            return False
        self._say(f"{run.name}: {arguments[1]} {time.monotonic() - start:.0f} s")
        return True

    def _curves(self, stages: Sequence[Stage]) -> dict[str, list[list[float]]]:
        """PSNR on the held-out photographs and the losses against the student's updates."""
        curves: dict[str, list[list[float]]] = {}
        offset = 0
        for stage in stages:
            for tag, points in read_curves(self.work / "tb_logger" / stage.options["name"]).items():
                kind, _, name = tag.partition("/")
                if kind not in ("metrics", "losses"):
                    continue
                last = stage.options["train"]["total_iter"]
                line = [[offset + min(step, last), value] for step, value in points]
                every = max(1, len(line) // _LOSS_POINTS) if kind == "losses" else 1
                kept = [[step, float(f"{value:.5g}")] for step, value in line[::-every][::-1]]
                curves.setdefault(name if kind == "metrics" else tag, []).extend(kept)
            offset += stage.options["train"]["total_iter"]
        return curves

    def _say(self, text: str) -> None:
        with self._say_lock:
            sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
            sys.stdout.flush()


@torch.no_grad()
def rate_run(run: Run, work: Path) -> None:
    """Rate a run's student, and its teacher if it has one, and write `<work>/ratings/<run>.json`."""
    folders = {"held_out": work / "data/held_out"}
    folders |= {name: work / "data/tests" / name for name in run.recipe.data.tests}
    last = run.stages()[-1]
    role = "teacher" if run.arm == TEACHER_ARM else "student"
    rating = {role: rate(_device(load_network(work / last.result, last.network)[0]), folders, run.recipe.scale)}
    if role == "teacher":
        rating["bicubic"] = rate(bicubic(run.recipe.scale), folders, run.recipe.scale)
    first = run.stages()[0]
    if first.shared is not None and first.options["train"].get("teacher_opt"):
        teacher, _ = load_network(work / first.shared, stock_network(run.recipe.options["network_g"], 1.0))
        rating["teacher"] = rate(_device(teacher), folders, run.recipe.scale, everything=False)
    file = work / "ratings" / f"{run.name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(rating), encoding="utf-8")


def _device(network: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    if not torch.cuda.is_available():
        return network
    network = network.cuda()
    return lambda x: network(x.cuda()).cpu()


def _line(rating: dict[str, Any]) -> str:
    return "  ".join(
        f"{role} " + " ".join(f"{name} {values['psnr']:.2f}" for name, values in sets.items())
        for role, sets in rating.items()
    )


def _compact(result: dict[str, Any]) -> str:
    """JSON with one line a key, so that a change shows as one."""
    lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in result.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
