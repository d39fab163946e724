"""The reference of all options, from the schema and its docstrings: `python -m csd_plugin.config.reference`."""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from csd_plugin.archs.cssr_arch import CSSRNet
from csd_plugin.config.schema import (
    LoggerOptions,
    NegativesOptions,
    PathOptions,
    RecurrentTrainOptions,
    RecurrentValOptions,
    SlidingWindowTrainOptions,
    TrainOptions,
    ValOptions,
)
from csd_plugin.losses.contrastive_loss import ContrastiveLoss

DOCUMENT = Path(__file__).parents[2] / "docs" / "options.md"
_INTRO = """# Options

Written by `python -m csd_plugin.config.reference` from the schema that option files are checked against. Options that
are BasicSR's own (data sets, optimizer, scheduler, metrics, paths) are in [its
documentation](https://github.com/XPixelGroup/BasicSR/blob/master/docs/Config.md). An unknown key is an error. `~` is
YAML's null: none.

Option files may build on others with `_base_: other.yml`; a key that is `~` there cannot be overridden by a block. The
merged file is kept with the experiment. `--force_yml train:optim_g:lr=2e-4` takes any YAML value and may add keys.
"""
_ENTRY = re.compile(r"^    (\w+): (.*(?:\n {8,}.*)*)", re.MULTILINE)
_HEAD = "| option | type | default | meaning |\n|---|---|---|---|"


def descriptions(documented: type) -> dict[str, str]:
    """What the docstring of a class says of each attribute or argument, on one line each."""
    text = inspect.getdoc(documented) or ""
    section = re.search(r"^(?:Attributes|Args):\n((?: {4}.*\n?|\n)+)", text, re.MULTILINE)
    if section is None:
        return {}
    return {name: " ".join(said.split()) for name, said in _ENTRY.findall(section[1])}


def _type_name(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type_name(get_args(annotation)[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, UnionType):
        return " or ".join(_type_name(part) for part in get_args(annotation) if part is not NoneType)
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "block"
    names = {int: "integer", float: "number", bool: "true, false", str: "text"}
    if annotation in names:
        return names[annotation]
    return "block" if origin in (dict, Mapping) else "list" if origin is not None else "text"


def _default(value: Any) -> str:
    if value is None:
        return "`~`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:.4g}`" if isinstance(value, float) else f"`{value}`"


def _rows(path: str, schema: type[BaseModel], known: frozenset[str] = frozenset()) -> Iterator[str]:
    """A line for each key that is described, those of `known` left out."""
    said: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if inspect.isclass(base) and issubclass(base, BaseModel):
            said |= descriptions(base)
    for key, item in schema.model_fields.items():
        if key in said and key not in known:
            is_block = inspect.isclass(item.annotation) and issubclass(item.annotation, BaseModel)
            default = "" if item.is_required() or is_block else _default(item.default)
            yield f"| `{path}{key}` | {_type_name(item.annotation)} | {default} | {_cell(said[key])} |"


def _argument_rows(path: str, documented: type) -> Iterator[str]:
    """A line for each argument of a class that an option block builds."""
    said = descriptions(documented)
    hints = inspect.signature(documented)
    for key, parameter in hints.parameters.items():
        default = "" if parameter.default is parameter.empty else _default(parameter.default)
        yield f"| `{path}{key}` | {_type_name(parameter.annotation)} | {default} | {_cell(said[key])} |"


def _cell(text: str) -> str:
    plain = re.sub(r":math:`([^`]*)`", lambda match: match[1].replace("\\", ""), text)
    return plain.replace("|", "\\|").replace("None", "`~`")


def render() -> str:
    """The text of docs/options.md."""
    train, val = frozenset(TrainOptions.model_fields), frozenset(ValOptions.model_fields)
    recurrent = "Training on clips, from clip to clip (`CSDVideoRecurrentModel`)"
    sections = {
        "Network (`network_g`, type `CSSRNet`)": _argument_rows("network_g:", CSSRNet),
        "Training (`CSDModel`)": _rows("train:", TrainOptions),
        "Contrast": _argument_rows("train:contrastive_opt:", ContrastiveLoss),
        "Negatives": _rows("train:negatives:", NegativesOptions),
        recurrent: _rows("train:", RecurrentTrainOptions, train),
        "Training on clips, to one frame (`CSDVideoModel`)": _rows("train:", SlidingWindowTrainOptions, train),
        "Validation": _rows("val:", ValOptions),
        "Validation on clips (`CSDVideoRecurrentModel`)": _rows("val:", RecurrentValOptions, val),
        "Paths": _rows("path:", PathOptions),
        "Logging": _rows("logger:", LoggerOptions),
    }
    parts = [f"## {title}\n\n{_HEAD}\n" + "\n".join(rows) for title, rows in sections.items()]
    return "\n".join([_INTRO, "\n\n".join(parts)]) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"written to {DOCUMENT}\n")
