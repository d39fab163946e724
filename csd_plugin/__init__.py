"""Contrastive self-distillation (CSD, IJCAI 2021) for BasicSR.

Importing the package mends BasicSR for a current stack (`compat`) and registers CSSRNet, CARN, ContrastiveLoss and
the models with it, which makes `import csd_plugin` at the top of a `train.py`, before basicsr, all that is needed.
"""

from csd_plugin import compat
from csd_plugin.archs.carn_arch import CARN
from csd_plugin.archs.cssr_arch import CSSRNet
from csd_plugin.errors import ChannelMapError, OptionError
from csd_plugin.losses.contrastive_loss import ContrastiveLoss, contrastive_loss
from csd_plugin.models.csd_model import CSDModel
from csd_plugin.models.video_models import CSDVideoModel, CSDVideoRecurrentModel
from csd_plugin.slicing.widths import BackboneSpec, register_backbone
from csd_plugin.version import __version__

__all__ = [
    "BackboneSpec",
    "CARN",
    "CSDModel",
    "CSDVideoModel",
    "CSDVideoRecurrentModel",
    "CSSRNet",
    "ChannelMapError",
    "ContrastiveLoss",
    "OptionError",
    "__version__",
    "contrastive_loss",
    "register_backbone",
]


def _register() -> None:
    from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY

    from csd_plugin.registry import register

    register(ARCH_REGISTRY, CARN)
    register(ARCH_REGISTRY, CSSRNet)
    register(LOSS_REGISTRY, ContrastiveLoss)
    for model in (CSDModel, CSDVideoModel, CSDVideoRecurrentModel):
        register(MODEL_REGISTRY, model)


compat.apply()
_register()
