"""Backbones of timm, which needs torchvision and is an option of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmkd_plugin.checkpoint import load_state
from mmkd_plugin.models.foundation.encoder import (
    IMAGENET,
    Encoded,
    Encoder,
    as_map,
    chosen_blocks,
    find_side,
)
from mmkd_plugin.models.foundation.files import existing, read_json, read_weights
from mmkd_plugin.words import did_you_mean, first_line


def load(path: str, blocks: Sequence[int], config: Any = None) -> Encoder:
    """Loads a backbone from a folder of timm's, or a file of weights.

    Args:
        path (str): A folder with timm's ``config.json``, or a file.
        blocks (Sequence[int]): The blocks or stages whose maps are wanted.
        config (str, optional): Name of the model if there is no ``config.json``. Defaults to None.

    Returns:
        Encoder: The backbone.

    Raises:
        ValueError: If timm is missing, or the files cannot be used.
        FileNotFoundError: If a file is missing.
    """
    found = existing(path, f'hf download timm/NAME --local-dir {path}')
    timm = _library()
    file = (found if found.is_dir() else found.parent) / 'config.json'
    described = read_json(file) if file.is_file() else {}
    name = config or described.get('architecture')
    if not isinstance(name, str) or not timm.is_model(name):
        hint = did_you_mean(str(name), timm.list_models(), "'{}'")
        raise ValueError(
            f'config must be the name of a model of timm where no config.json lies with the '
            f'weights, got {name!r}{hint}'
        )
    model = _model(timm, name, dict(described.get('model_args') or {}))
    load_state(model, read_weights(found), found, name=name, lenient=None)
    made = _Timm(model.eval(), blocks, name)
    said = described.get('pretrained_cfg') or model.pretrained_cfg
    made.normalised_by(said.get('mean', IMAGENET[0]), said.get('std', IMAGENET[1]), 1 / 255)
    return made


def _library() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            "source='timm' needs the packages timm and torchvision: pip install timm "
            f'({first_line(error)})'
        ) from error
    return timm


def _model(timm: Any, name: str, arguments: dict[str, Any]) -> nn.Module:
    options = dict(arguments, pretrained=False, num_classes=0)
    try:
        try:  # transformers of other sizes than that of their training
            model = timm.create_model(name, dynamic_img_size=True, **options)
        except TypeError:
            model = timm.create_model(name, **options)
    except Exception as error:  # timm checks arguments in ways of its own
        raise ValueError(f'timm cannot build {name}: {first_line(error)}') from error
    if not hasattr(model, 'forward_intermediates'):
        raise ValueError(f'{name} of timm gives no maps of its blocks; such a model is no teacher')
    return model


class _Timm(Encoder):
    def __init__(self, model: nn.Module, blocks: Sequence[int], name: str) -> None:
        super().__init__()
        self.model = model
        self._blocks = chosen_blocks(blocks, len(model.feature_info), name)
        patch = getattr(getattr(model, 'patch_embed', None), 'patch_size', None)
        self.divisor = patch[0] if patch else model.feature_info[-1]['reduction']
        find_side(self, model.pretrained_cfg.get('input_size', (3, None))[-1], name)

    def forward(self, images: Tensor) -> Encoded:
        """Encodes images ``(N, 3, H, W)``."""
        wanted = sorted(set(self._blocks))
        last, given = self.model.forward_intermediates(
            images, indices=wanted, norm=True, output_fmt='NCHW'
        )
        maps = [given[wanted.index(number)] for number in self._blocks]
        if last.ndim == 4:
            return Encoded(maps, last)
        extra = getattr(self.model, 'num_prefix_tokens', 0)
        grid = images.shape[-2] // self.divisor, images.shape[-1] // self.divisor
        summary = last[:, 0] if getattr(self.model, 'has_class_token', False) else None
        return Encoded(maps, as_map(last[:, extra:], grid), summary)
