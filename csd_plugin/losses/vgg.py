"""Features of a VGG-19 after its ReLUs, with weights of any channel counts."""

import os
import re
import urllib.error
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import VGG19_Weights

from csd_plugin.checkpoint import load_mapping
from csd_plugin.errors import OptionError

IMAGENET_FILE = "vgg19-dcbb9e9d.pth"
_BASICSR_FILE = Path("experiments/pretrained_models") / IMAGENET_FILE
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CONVS_PER_BLOCK = (2, 2, 4, 4, 4)
_CHANNELS_PER_BLOCK = (64, 128, 256, 512, 512)
_RANDOM_SEED = 19


def _layout() -> dict[str, int]:
    """Index of every layer in torchvision's `vgg19().features`, by name."""
    names = []
    for block, convs in enumerate(_CONVS_PER_BLOCK, start=1):
        for conv in range(1, convs + 1):
            names += [f"conv{block}_{conv}", f"relu{block}_{conv}"]
        names.append(f"pool{block}")
    return {name: index for index, name in enumerate(names)}


LAYERS = _layout()


class VGGFeatures(nn.Module):
    """VGG-19 up to the deepest of the wanted layers, frozen.

    Args:
        layers: names such as `relu1_1` or `conv3_2`.
        weights: `imagenet` (torchvision's file, downloaded on first use), `random` (fixed seed) or a path to a file
            with torchvision's keys `features.N.weight` and `features.N.bias`, whose channel counts may differ.
        input_norm: `imagenet` subtracts the ImageNet mean and divides by its standard deviation; `none` does not.
        input_range: factor on the images before they enter, so that the network sees 0..input_range.

    Attributes:
        unit: what the features are divided by. A ReLU network with its biases divided by c gives, for an input divided
            by c, its features divided by c; so an input range of 255 does not overflow float16.

    Raises:
        OptionError: unknown layer or setting, or weights missing or not those of a VGG-19.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        layers: Sequence[str],
        weights: str = "imagenet",
        input_norm: Literal["imagenet", "none"] = "imagenet",
        input_range: float = 1.0,
    ) -> None:
        super().__init__()
        unknown = [name for name in layers if name not in LAYERS]
        if unknown or not layers:
            raise OptionError(
                f"expected layers of VGG-19 such as relu1_1 or conv5_4, got {unknown[0] if unknown else 'none'} "
                "(option train:contrastive_opt:layer_weights)"
            )
        if input_norm not in ("imagenet", "none"):
            raise OptionError(
                f"expected imagenet or none, got {input_norm!r} (option train:contrastive_opt:input_norm)"
            )
        if not input_range > 0 or (input_norm == "imagenet" and input_range != 1):
            raise OptionError(
                f"expected input_range 1 with input_norm imagenet and a positive one with none, got {input_range!r} "
                "(option train:contrastive_opt:input_range)"
            )
        self.layers = tuple(layers)
        self.input_range = float(input_range)
        mean, std = (_MEAN, _STD) if input_norm == "imagenet" else ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        depth = max(LAYERS[name] for name in layers) + 1
        self.features = _random_features(depth) if weights == "random" else _features_from(_find(weights), depth)
        self.unit = self.input_range if input_norm == "none" else 1.0
        for layer in self.features:
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                layer.bias.data /= self.unit
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features of a batch.

        Args:
            images: RGB images (B, 3, H, W) in 0..1.

        Returns:
            For each wanted layer its output divided by `unit` (B, C, H', W').
        """
        x = (images * (self.input_range / self.unit) - self.mean) / self.std
        outputs: dict[str, Tensor] = {}
        wanted = False
        for name, layer in zip(LAYERS, self.features, strict=False):
            x = x.relu_() if isinstance(layer, nn.ReLU) and not wanted else layer(x)
            wanted = name in self.layers
            if wanted:
                outputs[name] = x
        return outputs

    def train(self, mode: bool = True) -> "VGGFeatures":  # noqa: ARG002
        """The extractor is frozen: it stays in evaluation mode."""
        return super().train(False)


def weights_file(weights: str) -> Path | None:
    """The file that `vgg_weights` names or, for `imagenet`, the one already on this machine; None for `random`.

    Raises:
        OptionError: the named file does not exist.
    """
    if weights == "random":
        return None
    if weights == "imagenet":
        cached = Path(torch.hub.get_dir()) / "checkpoints" / IMAGENET_FILE
        return next((path for path in (cached, _BASICSR_FILE) if path.is_file()), None)
    path = Path(os.path.expanduser(weights))
    if not path.is_file():
        raise OptionError(f"no such file: {weights} (option train:contrastive_opt:vgg_weights)")
    return path


def _find(weights: str) -> Path:
    path = weights_file(weights)
    return path if path is not None else _download()


def _download() -> Path:
    target = Path(torch.hub.get_dir()) / "checkpoints" / IMAGENET_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(VGG19_Weights.IMAGENET1K_V1.url, str(target), hash_prefix="dcbb9e9d")
    except (urllib.error.URLError, OSError) as error:
        raise OptionError(
            f"the ImageNet VGG-19 is not on this machine and cannot be downloaded ({error}): put torchvision's "
            f"{IMAGENET_FILE} (548 MB) at {target} or {_BASICSR_FILE}, or name a file "
            "(option train:contrastive_opt:vgg_weights)"
        ) from None
    return target


def _features_from(path: Path, depth: int) -> nn.Sequential:
    """VGG-19 with the channel counts and the weights of a file."""
    state = load_mapping(path, "train:contrastive_opt:vgg_weights")
    wanted: dict[str, Tensor] = {}
    channels: list[int] = []
    for name, index in LAYERS.items():
        if index >= depth or not re.match("conv", name):
            continue
        weight, bias = (state.get(f"features.{index}.{kind}") for kind in ("weight", "bias"))
        expected_in = channels[-1] if channels else 3
        if not isinstance(weight, Tensor) or not isinstance(bias, Tensor):
            weight, bias = torch.empty(0), torch.empty(0)
        if weight.shape[1:] != (expected_in, 3, 3) or bias.shape != weight.shape[:1]:
            found = f"shape {tuple(weight.shape)}" if weight.numel() else "none"
            raise OptionError(
                f"{path} is no VGG-19: expected features.{index}.weight of shape (C, {expected_in}, 3, 3) for {name}, "
                f"found {found} (option train:contrastive_opt:vgg_weights)"
            )
        channels.append(weight.shape[0])
        wanted |= {f"{index}.weight": weight.float(), f"{index}.bias": bias.float()}
    features = _stack(channels, depth)
    features.load_state_dict(wanted)
    return features


def _random_features(depth: int) -> nn.Sequential:
    """VGG-19 with He-normal weights from a fixed seed, the same on every rank and machine."""
    channels = [c for c, convs in zip(_CHANNELS_PER_BLOCK, _CONVS_PER_BLOCK, strict=True) for _ in range(convs)]
    features = _stack(channels, depth)
    generator = torch.Generator().manual_seed(_RANDOM_SEED)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.weight[0].numel()
            layer.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            layer.load_state_dict({"weight": layer.weight.data, "bias": torch.zeros(layer.out_channels)})
    return features


def _stack(channels: Sequence[int], depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    remaining = iter(channels)
    previous = 3
    with torch.random.fork_rng(devices=[]):
        for name in list(LAYERS)[:depth]:
            if name.startswith("conv"):
                current = next(remaining)
                layers.append(nn.Conv2d(previous, current, 3, padding=1))
                previous = current
            else:
                layers.append(nn.ReLU() if name.startswith("relu") else nn.MaxPool2d(2))
    return nn.Sequential(*layers)
