"""Networks of timm as they are, but with few channels and blocks, under names of their own."""

from typing import Any

import timm
from timm.models import generate_default_cfgs, register_model

PLAIN = {"embed_dim": 48, "depth": 5, "num_heads": 3}
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "small_dinov2": ("vit_small_patch14_dinov2", PLAIN),
    "small_dinov2_registers": ("vit_small_patch14_reg4_dinov2", PLAIN),
    "small_dinov3": ("vit_small_patch16_dinov3", PLAIN),
    "small_eva02": ("eva02_tiny_patch14_224", PLAIN),
    "small_siglip": ("vit_base_patch16_siglip_224", PLAIN),
    "small_beit": ("beit_base_patch16_224", PLAIN),
    "small_swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 2)},
    ),
    "small_hiera": ("hiera_tiny_224", {"embed_dim": 24, "stages": (1, 1, 1, 1)}),
    "small_sam2_hiera": ("sam2_hiera_tiny", {"embed_dim": 24, "stages": (1, 1, 2, 1), "global_att_blocks": (3,)}),
}
default_cfgs = generate_default_cfgs(
    {name: timm.get_pretrained_cfg(full).to_dict() for name, (full, _) in SMALL.items()}
)


def _register(small: str, name: str, sizes: dict[str, Any]) -> None:
    def build(pretrained: bool = False, **kwargs: Any) -> Any:
        return timm.create_model(name, **{**sizes, **kwargs})

    build.__name__ = small
    register_model(build)


for _small, (_name, _sizes) in SMALL.items():
    _register(_small, _name, _sizes)
