"""The command `basicsr`: thin; the work of each sub-command lives in the module that it belongs to."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points

import basicsr.test
import basicsr.train
import torch

from csd_plugin import compat
from csd_plugin.config import packaged, wrap
from csd_plugin.config.load import arguments
from csd_plugin.data import prepare
from csd_plugin.deploy import export, upscale
from csd_plugin.errors import OptionError
from csd_plugin.evaluation import compare, profile, report, summary

_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "compare": compare.run,
    "export": export.run,
    "options": packaged.run,
    "profile": profile.run,
    "report": report.run,
    "summary": summary.run,
    "upscale": upscale.run,
    "wrap": wrap.run,
}
_PLUGIN_GROUP = "basicsr.plugins"


def load_plugins() -> None:
    """Import every installed plugin of the entry-point group `basicsr.plugins`.

    One that cannot be imported is reported and left out: it must not take the others down.
    """
    for plugin in entry_points(group=_PLUGIN_GROUP):
        try:
            plugin.load()
        except Exception as error:
            logging.getLogger("csd_plugin").warning(
                "plugin %s (%s) cannot be loaded: %s", plugin.name, plugin.value, error
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="basicsr", description="BasicSR with contrastive self-distillation.")
    parser.add_argument("--version", action="version", version=compat.version_line())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (("train", "train a network"), ("test", "test a network")):
        example = f"example: basicsr {name} -opt options/{'' if name == 'train' else 'test_'}csd_rcan_x4.yml"
        commands.add_parser(name, help=f"{text} as an option file says", epilog=example, parents=[arguments()])
    prepare.add_arguments(commands.add_parser("prepare", help="make training data from a folder of HR images"))
    report.add_arguments(commands.add_parser("report", help="a run on one HTML page"))
    summary.add_arguments(commands.add_parser("summary", help="table and pictures of a trained student"))
    packaged.add_arguments(commands.add_parser("options", help="copy the option files that come with the package"))
    profile.add_arguments(commands.add_parser("profile", help="what teacher and students cost"))
    compare.add_arguments(commands.add_parser("compare", help="several models on the same photographs"))
    export.add_arguments(commands.add_parser("export", help="write trained students as files that others run"))
    upscale.add_arguments(commands.add_parser("upscale", help="enlarge images with an exported student"))
    wrap.add_arguments(commands.add_parser("wrap", help="turn a stock training file into one for a student"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments after the program's name; None takes the process's own.

    Returns:
        Exit status: 0, 2 for a mistake in options, files or data, 130 after an interrupt.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(argv)
    try:
        if args.command in ("train", "test"):
            load_plugins()
            _run_pipeline(args.command, argv[1:])
        elif args.command == "prepare":
            prepare.run(args)
        else:
            load_plugins()
            _COMMANDS[args.command](args)
    except OptionError as error:
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"basicsr {args.command}: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"basicsr {args.command}: interrupted\n")
        return 130
    return 0


def _run_pipeline(command: str, rest: Sequence[str]) -> None:
    """BasicSR's own pipeline in the working directory; it reads its flags from `sys.argv`."""
    pipeline = basicsr.train.train_pipeline if command == "train" else basicsr.test.test_pipeline
    original = sys.argv
    sys.argv = [f"basicsr {command}", *rest]
    try:
        pipeline(os.getcwd())
    finally:
        sys.argv = original
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
