"""Tiny options of the supported backbones."""

from csd_plugin.slicing.widths import BACKBONES


def tiny(name, scale=2):
    """Options of a small network of each kind whose width divides by 4."""
    ends = {"num_in_ch": 3, "num_out_ch": 3}
    options = {
        "EDSR": {**ends, "num_feat": 8, "num_block": 2, "upscale": scale},
        "RCAN": {**ends, "num_feat": 16, "num_group": 2, "num_block": 1, "squeeze_factor": 4, "upscale": scale},
        "MSRResNet": {**ends, "num_feat": 8, "num_block": 2, "upscale": scale},
        "SRVGGNetCompact": {**ends, "num_feat": 8, "num_conv": 2, "upscale": scale},
        "ECBSR": {
            **ends,
            "num_block": 2,
            "num_channel": 8,
            "with_idt": True,
            "act_type": "prelu",
            "scale": scale,
        },
    }
    return {"type": name, **options[name]}


PREFIX_BACKBONES = sorted(set(BACKBONES) - {"RRDBNet"})
