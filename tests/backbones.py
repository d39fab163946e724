"""Tiny options of the supported backbones."""

_ENDS = {"num_in_ch": 3, "num_out_ch": 3}
_RGB = {"in_channels": 3, "out_channels": 3}
_SWIN = {"img_size": 8, "window_size": 4, "depths": [2, 2], "num_heads": [4, 4], "embed_dim": 16, "mlp_ratio": 2}
_EDVR = {"num_extract_block": 1, "num_reconstruct_block": 1}

IMAGE_BACKBONES = ("CARN", "ECBSR", "EDSR", "MSRResNet", "RCAN", "RIDNet", "RRDBNet", "SRVGGNetCompact", "SwinIR")
VIDEO_BACKBONES = ("BasicVSR", "BasicVSRPlusPlus", "EDVR")
PREFIX_BACKBONES = ("ECBSR", "EDSR", "MSRResNet", "RCAN", "SRVGGNetCompact")
SCALABLE = tuple(name for name in IMAGE_BACKBONES if name != "RIDNet")  # RIDNet restores, it does not enlarge


def tiny(name, scale=2):
    """Options of a small network of each kind whose width divides by 4."""
    options = {
        "CARN": {**_ENDS, "num_feat": 8, "num_block": 2, "num_residual": 2, "upscale": scale},
        "EDSR": {**_ENDS, "num_feat": 8, "num_block": 2, "upscale": scale},
        "RCAN": {**_ENDS, "num_feat": 16, "num_group": 2, "num_block": 1, "squeeze_factor": 4, "upscale": scale},
        "MSRResNet": {**_ENDS, "num_feat": 8, "num_block": 2, "upscale": scale},
        "SRVGGNetCompact": {**_ENDS, "num_feat": 8, "num_conv": 2, "upscale": scale},
        "ECBSR": {
            **_ENDS,
            "num_block": 2,
            "num_channel": 8,
            "with_idt": False,
            "act_type": "prelu",
            "scale": scale,
        },
        "RRDBNet": {**_ENDS, "num_feat": 8, "num_block": 1, "num_grow_ch": 4, "scale": scale},
        "RIDNet": {**_RGB, "mid_channels": 64, "num_block": 1},
        "SwinIR": {**_SWIN, "upscale": scale, "upsampler": "pixelshuffle"},
        "EDVR": {**_EDVR, "num_feat": 8, "deformable_groups": 1},
        "BasicVSR": {"num_feat": 8, "num_block": 1},
        "BasicVSRPlusPlus": {"mid_channels": 32, "num_blocks": 1},
    }
    return {"type": name, **options[name]}
