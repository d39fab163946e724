"""`python -m benchmarks.quality run|list|latency|table`."""

import csd_plugin  # noqa: F401  isort: skip  (mends BasicSR, so it comes before it)

import argparse
import sys
import time
from pathlib import Path

from benchmarks.quality.data import prepare_data
from benchmarks.quality.document import measure_latency, write_document
from benchmarks.quality.recipe import TEACHER_ARM, Recipe, Run, load_recipe, recipe_names
from benchmarks.quality.runs import Runner, rate_run, result_file
from csd_plugin import OptionError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description="Train students in different ways from the same data and seeds, and compare them.",
        epilog="example: python -m benchmarks.quality run cpu_small --data DATA --arms csd sliced_l1 --seeds 0",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and rate the arms of a recipe; go on where it was cut")
    run.add_argument("recipe", choices=recipe_names())
    run.add_argument("--data", type=Path, required=True, help="folder that the paths of the recipe's data are below")
    run.add_argument("--work", type=Path, help="work folder (default: experiments/quality/RECIPE)")
    run.add_argument("--arms", nargs="+", help="these arms only")
    run.add_argument("--seeds", nargs="+", type=int, help="these seeds only")
    run.add_argument("--jobs", type=int, default=1, help="runs side by side (default: 1)")
    run.add_argument("--threads", type=int, default=1, help="threads of each (default: 1)")
    run.add_argument("--minutes", type=float, default=float("inf"), help="cut what is not finished then")
    commands.add_parser("list", help="recipes, their arms and which runs have a result")
    latency = commands.add_parser("latency", help="time the networks of a recipe that has been run")
    latency.add_argument("recipe", choices=recipe_names())
    commands.add_parser("table", help="write docs/quality.md and its plots from the results")
    rate = commands.add_parser("rate", help=argparse.SUPPRESS)
    rate.add_argument("recipe")
    rate.add_argument("name")
    rate.add_argument("--work", type=Path)
    return parser


def runs_of(recipe: Recipe, arms: list[str] | None = None, seeds: list[int] | None = None) -> list[Run]:
    """The teacher and the runs of a recipe, seed by seed."""
    for arm in arms or ():
        recipe.arm(arm)
    chosen = [arm for arm in recipe.arms if arms is None or arm in arms]
    chosen += [arm for arm in arms or () if arm not in chosen]
    wanted = seeds or recipe.seeds
    return [Run(recipe, TEACHER_ARM, None), *(Run(recipe, arm, seed) for seed in wanted for arm in chosen)]


def main() -> int:
    """Run a command; 1 if a run failed or was cut, 2 for a mistake."""
    args = _parser().parse_args()
    try:
        if args.command == "run":
            recipe = load_recipe(args.recipe)
            runs = runs_of(recipe, args.arms, args.seeds)
            work = (args.work or Path("experiments/quality") / recipe.name).resolve()
            prepare_data(recipe, args.data, work)
            until = time.monotonic() + 60 * args.minutes
            return int(Runner(work, args.threads, until).all(runs, args.jobs) > 0)
        if args.command == "rate":
            recipe = load_recipe(args.recipe)
            known = {run.name: run for run in runs_of(recipe)}
            arm, _, seed = args.name.rpartition("_")
            rate_run(known.get(args.name) or Run(recipe, arm, int(seed)), args.work)
        elif args.command == "latency":
            measure_latency(args.recipe)
        elif args.command == "list":
            _list()
        else:
            write_document()
    except OptionError as error:
        sys.stderr.write(f"benchmarks.quality: error: {error}\n")
        return 2
    return 0


def _list() -> None:
    for name in recipe_names():
        recipe = load_recipe(name)
        sys.stdout.write(f"{name}: {recipe.title}\n")
        for arm in recipe.arms:
            done = [seed for seed in recipe.seeds if result_file(Run(recipe, arm, seed)).is_file()]
            sys.stdout.write(f"  {arm:24} {len(done)} of {len(recipe.seeds)} seeds  {recipe.arm(arm).about}\n")


if __name__ == "__main__":
    sys.exit(main())
