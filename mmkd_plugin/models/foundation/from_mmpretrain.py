"""Backbones of mmpretrain, which needs torchvision and is an option of the user's."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.utils import digit_version
from torch import Tensor, nn

from mmkd_plugin import stack
from mmkd_plugin.checkpoint import load_weights, nearest_names
from mmkd_plugin.models.foundation.encoder import Encoded, Encoder, as_map, chosen_blocks, find_side
from mmkd_plugin.models.foundation.files import existing
from mmkd_plugin.words import first_line, short


def load(path: str, blocks: Sequence[int], config: Any = None) -> Encoder:
    """Loads the backbone of a model of mmpretrain.

    Args:
        path (str): Its checkpoint.
        blocks (Sequence[int]): The blocks or stages whose maps are wanted.
        config (str | dict): Its config: a path, ``'mmpretrain::dinov2/....py'``, or a dict with
            ``model`` and ``data_preprocessor``.

    Returns:
        Encoder: The backbone.

    Raises:
        ValueError: If mmpretrain is missing, or config and checkpoint cannot be used.
        FileNotFoundError: If a file is missing.
    """
    file = existing(path, f'mim download mmpretrain --config NAME --dest {Path(path).parent}')
    registry = _library()
    read = _read(config)
    name = str(config) if isinstance(config, str) else 'the model'
    backbone = copy.deepcopy(read.get('model', {}).get('backbone'))
    if not isinstance(backbone, dict) or 'type' not in backbone:
        raise ValueError(f'config: {name} has no `model.backbone`')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model, numbers = _model(registry, backbone, blocks, name)
    load_weights(model, file, name=name, lenient=None)
    model.eval()  # which returns nothing in mmpretrain
    made = _MMPretrain(model, numbers, name)
    said = read.get('data_preprocessor') or read['model'].get('data_preprocessor') or {}
    if not said.get('mean') or not said.get('std'):
        raise ValueError(f'config: {name} has no `data_preprocessor` with mean and std')
    made.rgb = bool(said.get('to_rgb'))
    made.normalised_by(said['mean'], said['std'], 1)
    return made


def _library() -> Any:
    try:
        _leave_language_out()
        import_module('mmpretrain.models')
        from mmpretrain.registry import MODELS
    except (ImportError, AssertionError) as error:  # it asserts the versions of the others
        raise ValueError(
            "source='mmpretrain' needs the packages mmpretrain and torchvision: pip install "
            f'mmpretrain, or onedl-mmpretrain for the fork ({first_line(error)})'
        ) from error
    return MODELS


def _leave_language_out() -> None:
    """Keeps mmpretrain from importing its language models, which fail beside transformers 5."""
    try:
        newer = digit_version(version('transformers')) >= digit_version('5.0')
    except PackageNotFoundError:
        return
    if newer:
        import_module('mmpretrain.utils.dependency').WITH_MULTIMODAL = False


def _read(config: Any) -> Any:
    if isinstance(config, dict):
        return config
    if not isinstance(config, str):
        raise ValueError(
            "config must be that of the model, such as 'mmpretrain::dinov2/....py', got "
            f'{short(config)}'
        )
    file = stack.shipped_config(config) if '::' in config else Path(config)
    if not file.is_file():
        raise FileNotFoundError(f'config: no file at {config}{nearest_names(file, [".py"])}')
    return Config.fromfile(file)


def _model(
    registry: Any, backbone: dict, blocks: Sequence[int], name: str
) -> tuple[nn.Module, list[int]]:
    """Builds a backbone that gives the maps of some blocks and of the last one."""
    kind = registry.get(backbone['type'])
    if kind is None:
        raise ValueError(f'config: mmpretrain has no {backbone["type"]!r}')
    known = {key for base in kind.__mro__ for key in inspect.signature(base.__init__).parameters}
    backbone = dict(backbone, init_cfg=None)
    backbone |= {'out_type': 'raw'} if 'raw' in getattr(kind, 'OUT_TYPES', ()) else {}
    backbone |= {'gap_before_final_norm': False} if 'gap_before_final_norm' in known else {}
    try:
        usual = registry.build(dict(backbone))
        count = _count(usual, name)
        numbers = chosen_blocks(blocks, count, name)
        backbone['out_indices'] = sorted({*numbers, count - 1})
        model = registry.build(backbone)
    except ValueError:
        raise
    except Exception as error:  # a backbone checks its arguments in ways of its own
        raise ValueError(f'config: {name}: {first_line(error)}') from error
    for child in {name for name, _ in model.named_children()} - {*dict(usual.named_children())}:
        setattr(model, child, nn.Identity())  # norms of earlier stages, which no checkpoint has
    return model, numbers


def _count(model: nn.Module, name: str) -> int:
    count = getattr(model, 'num_layers', None) or getattr(model, 'num_stages', None)
    if not isinstance(count, int):
        raise ValueError(f'config: {name}: the blocks of a {type(model).__name__} are not known')
    return count


class _MMPretrain(Encoder):
    def __init__(self, model: nn.Module, blocks: list[int], name: str) -> None:
        super().__init__()
        self.model = model
        self._blocks, self._given = blocks, list(model.out_indices)
        patch = getattr(getattr(model, 'patch_embed', None), 'projection', None)
        tokens = getattr(model, 'out_type', None) == 'raw'
        self.divisor = patch.stride[0] if tokens and patch is not None else 32
        self._norm = getattr(model, 'ln1', None) if tokens else None
        find_side(self, (getattr(model, 'img_size', None) or (None,))[0], name)

    def forward(self, images: Tensor) -> Encoded:
        """Encodes images ``(N, 3, H, W)``."""
        given = dict(zip(self._given, self.model(images), strict=True))
        last = given[self._given[-1]]
        if last.ndim == 4:
            return Encoded([given[number] for number in self._blocks], last)
        grid = images.shape[-2] // self.divisor, images.shape[-1] // self.divisor
        extra = last.shape[1] - grid[0] * grid[1]
        maps = []
        for number in self._blocks:
            x = given[number]
            normed = number == self._given[-1] or self._norm is None
            maps.append(as_map((x if normed else self._norm(x))[:, extra:], grid))
        return Encoded(maps, as_map(last[:, extra:], grid), last[:, 0] if extra else None)
