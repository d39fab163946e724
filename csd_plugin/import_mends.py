"""What BasicSR 1.4.2 needs before it can be imported on a current stack. Import this module before basicsr."""

import importlib.util
import sys
from types import ModuleType


def provide_functional_tensor() -> None:
    """Stand in for `torchvision.transforms.functional_tensor`, gone since torchvision 0.17, where it is missing."""
    name = "torchvision.transforms.functional_tensor"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    from torchvision.transforms.functional import rgb_to_grayscale

    module = ModuleType(name, "Stand-in for a module that torchvision removed.")
    module.__dict__["rgb_to_grayscale"] = rgb_to_grayscale
    sys.modules[name] = module


def provide_distutils() -> None:
    """Load setuptools' copy of `distutils` where Python (3.12 and later) has none."""
    if importlib.util.find_spec("distutils") is None:
        import setuptools  # noqa: F401


provide_functional_tensor()
provide_distutils()
