"""Backbones of transformers: DINOv2, DINOv3, SigLIP 2, C-RADIO, CLIP, SAM, SAM 2 and others."""

from __future__ import annotations

import inspect
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmkd_plugin.models.foundation.encoder import (
    IMAGENET,
    Encoded,
    Encoder,
    as_map,
    chosen_blocks,
    find_side,
)
from mmkd_plugin.models.foundation.files import (
    beside,
    existing,
    none_given,
    read_json,
    read_weights,
)
from mmkd_plugin.prefixes import behind, parts
from mmkd_plugin.words import did_you_mean, first_line, some

#: Repositories by the usual name of their folder, for the command that gets them.
REPOSITORIES = {
    'dinov2-small': 'facebook/dinov2-small',
    'dinov2-base': 'facebook/dinov2-base',
    'dinov2-large': 'facebook/dinov2-large',
    'dinov3-vits16': 'facebook/dinov3-vits16-pretrain-lvd1689m',
    'dinov3-vitb16': 'facebook/dinov3-vitb16-pretrain-lvd1689m',
    'dinov3-vitl16': 'facebook/dinov3-vitl16-pretrain-lvd1689m',
    'sam-vit-base': 'facebook/sam-vit-base',
    'sam2.1-hiera-tiny': 'facebook/sam2.1-hiera-tiny',
    'sam2.1-hiera-base-plus': 'facebook/sam2.1-hiera-base-plus',
    'c-radiov4-h': 'nvidia/C-RADIOv4-H',
    'siglip2-base-patch16-256': 'google/siglip2-base-patch16-256',
}

#: Names of the last norm, which is applied to the tokens of every chosen block.
LAST_NORMS = ('layernorm', 'norm', 'post_layernorm')


def load(path: str, blocks: Sequence[int], config: None = None) -> Encoder:
    """Loads a vision backbone from a folder that transformers wrote, or a file in it.

    Args:
        path (str): The folder, or the file of weights with a ``config.json`` beside it.
        blocks (Sequence[int]): The blocks whose maps are wanted.
        config (None): The files say the model themselves.

    Returns:
        Encoder: The backbone.

    Raises:
        ValueError: If transformers is missing, or the files cannot be used.
        FileNotFoundError: If a file is missing.
    """
    none_given(config)
    folder = existing(path, _command(path))
    described = read_json(beside(folder, 'config.json', 'which model it is'))
    vision = _vision_config(described, folder)
    weights = read_weights(folder)
    stages = hasattr(vision, 'depths')
    model = _model(vision, weights, folder, stages, _saved_by(described))
    kind = _Stages if stages else _Levels if hasattr(vision, 'fpn_hidden_size') else _Tokens
    made = kind(model, vision, blocks)
    made.normalised_by(*_normalisation(folder))
    return made


def _command(path: str) -> str:
    asked = path if re.fullmatch(r'[\w-][\w.-]*/[\w.-]+', path) else 'OWNER/NAME'
    return f'hf download {REPOSITORIES.get(Path(path).name, asked)} --local-dir {path}'


def _library() -> Any:
    """Imports transformers, which from then on asks no server for anything."""
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    os.environ.setdefault('TRANSFORMERS_OFFLINE', '1')
    try:
        import transformers
        from transformers.models.auto import configuration_auto, modeling_auto
    except ImportError as error:
        raise ValueError(
            f"source='transformers' needs the package transformers: pip install transformers "
            f'({first_line(error)})'
        ) from error
    return transformers, configuration_auto, modeling_auto


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' own reports and progress bars out of the log."""
    from transformers.utils import logging as said

    level, bar = said.get_verbosity(), said.is_progress_bar_enabled()
    said.set_verbosity_error()
    said.disable_progress_bar()
    try:
        yield
    finally:
        said.set_verbosity(level)
        if bar:
            said.enable_progress_bar()


def _vision_config(described: dict[str, Any], folder: Path) -> Any:
    """The config of the vision model in a ``config.json``."""
    library, configs, models = _library()
    kind = described.get('model_type')
    known = list(configs.CONFIG_MAPPING.keys())
    if kind not in known:
        own = 'auto_map' in described
        raise ValueError(
            f'{folder}: transformers {library.__version__} has no model {kind!r}'
            + _saved_by(described)
            + did_you_mean(str(kind), known, "'{}'")
            + (', and code that lies with weights is never run' if own else '')
        )
    try:
        with _quiet():
            config = configs.CONFIG_MAPPING[kind].from_dict(described)
    except Exception as error:  # transformers checks values in ways of its own
        raise ValueError(f'{folder}/config.json cannot be used: {first_line(error)}') from error
    config = getattr(config, 'vision_config', config)
    if type(config) not in models.MODEL_MAPPING:
        raise ValueError(f'{folder}: a {kind!r} has no vision model in transformers')
    return config


def _saved_by(described: dict[str, Any]) -> str:
    """A half sentence on the version that saved weights, if it is newer than the library."""
    library, *_ = _library()
    version = str(described.get('transformers_version', ''))
    saved, ours = (re.findall(r'\d+', x)[:2] for x in (version, library.__version__))
    if [*map(int, saved)] <= [*map(int, ours)]:
        return ''
    return f' (transformers {version} saved the weights: install that, or a newer one)'


def _model(
    config: Any, weights: dict[str, Tensor], folder: Path, stages: bool, saved_by: str
) -> nn.Module:
    _, _, models = _library()
    mapping = models.MODEL_FOR_BACKBONE_MAPPING if stages else models.MODEL_MAPPING
    if type(config) not in mapping:
        raise ValueError(f'{folder}: transformers has no backbone of a {config.model_type!r}')
    kind = mapping[type(config)]
    if kind.main_input_name != 'pixel_values':
        raise ValueError(f'{folder}: a {kind.__name__} does not take images')
    if stages:
        config.out_indices = list(range(len(config.depths) + 1))
    poolless = 'add_pooling_layer' in inspect.signature(kind.__init__).parameters
    options = dict(add_pooling_layer=False) if poolless else {}
    try:
        with _quiet():
            model, found = kind.from_pretrained(
                None, config=config, state_dict=weights, output_loading_info=True, **options
            )
    except Exception as error:  # weights of other shapes, and values of a config
        raise ValueError(f'{folder}: {first_line(error)}') from error
    missing = sorted(found['missing_keys'])
    own = {key: value.shape for key, value in model.state_dict().items()}
    inside = parts(own, weights) if missing else []
    if inside and inside[0].whole and inside[0].prefix:
        return _model(config, behind(weights, inside[0].prefix), folder, stages, saved_by)
    if missing:
        raise ValueError(
            f'{folder}: its weights are not those of the {kind.__name__} that its config.json '
            f'describes{saved_by}; {len(missing)} are missing: '
            f'{some(missing, limit=3)}'
        )
    return model.float().eval()


def _normalisation(folder: Path) -> tuple[Sequence[float], Sequence[float], float]:
    """Mean, standard deviation and scale of the image processor that lies with the weights."""
    root = folder if folder.is_dir() else folder.parent
    said: dict[str, Any] = {}
    if (root / 'preprocessor_config.json').is_file():
        said = read_json(root / 'preprocessor_config.json')
    elif (root / 'processor_config.json').is_file():
        said = read_json(root / 'processor_config.json').get('image_processor') or {}
    mean, std = said.get('image_mean'), said.get('image_std')
    if not said.get('do_normalize', True):  # the model does it
        mean, std = [0.0] * 3, [1.0] * 3
    scale = said.get('rescale_factor', 1 / 255) if said.get('do_rescale', True) else 1
    if not _three(mean) or not _three(std) or not isinstance(scale, (int, float)) or scale <= 0:
        print_log(
            f'{root} has no preprocessor_config.json with mean and std: images are normalised as '
            "for ImageNet. `data_preprocessor` of the teacher's config says another way.",
            logger='current',
            level=logging.WARNING,
        )
        return *IMAGENET, 1 / 255
    return mean, std, scale


def _three(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(x, (int, float)) for x in value)
    )


class _Tokens(Encoder):
    """A vision transformer: a token for each patch, with class and register tokens before them."""

    def __init__(self, model: nn.Module, config: Any, blocks: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.divisor = _whole(config.patch_size)
        self._name = type(model).__name__
        self._blocks = chosen_blocks(blocks, config.num_hidden_layers, self._name)
        self._last = config.num_hidden_layers - 1
        taken = inspect.signature(model.forward).parameters
        self._options = (
            dict(interpolate_pos_encoding=True) if 'interpolate_pos_encoding' in taken else {}
        )
        self._in_patches = 'spatial_shapes' in taken
        self._norm = _last_norm(model, config.hidden_size)
        side = getattr(config, 'image_size', None)
        find_side(self, side[0] if isinstance(side, (list, tuple)) else side, self._name)

    def forward(self, images: Tensor) -> Encoded:
        """Encodes images ``(N, 3, H, W)``."""
        grid = images.shape[-2] // self.divisor, images.shape[-1] // self.divisor
        before = [number for number in self._blocks if number != self._last]
        given = self.model(
            **self._inputs(images, grid), **self._options, output_hidden_states=bool(before)
        )
        last = given.last_hidden_state
        whole = self._map(last, grid)
        maps = [
            whole
            if number == self._last
            else self._map(self._normed(given.hidden_states[number + 1]), grid)
            for number in self._blocks
        ]
        summary = getattr(given, 'summary', None)
        if _are_vectors(summary):
            return Encoded(maps, whole, summary)
        if last.ndim == 3 and self._extra(last, grid):
            return Encoded(maps, whole, last[:, 0])
        pooled = getattr(given, 'pooler_output', None)
        return Encoded(maps, whole, pooled if _are_vectors(pooled) else None)

    def _inputs(self, images: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
        if not self._in_patches:
            return dict(pixel_values=images)
        count, p = len(images), self.divisor
        cells = images.unflatten(3, (grid[1], p)).unflatten(2, (grid[0], p))
        patches = cells.permute(0, 2, 4, 3, 5, 1).reshape(count, grid[0] * grid[1], -1)
        shapes = torch.tensor([grid] * count, device=images.device)
        mask = torch.ones(patches.shape[:2], dtype=torch.long, device=images.device)
        return dict(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes)

    def _normed(self, hidden: Tensor) -> Tensor:
        return hidden if self._norm is None else self._norm(hidden)

    def _map(self, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
        if hidden.ndim == 3:
            return as_map(hidden[:, self._extra(hidden, grid) :], grid)
        return hidden if hidden.shape[2:] == grid else hidden.permute(0, 3, 1, 2)

    def _extra(self, hidden: Tensor, grid: tuple[int, int]) -> int:
        """The number of class and register tokens, which come before those of the image."""
        extra = hidden.shape[1] - grid[0] * grid[1]
        if extra < 0:
            raise ValueError(
                f'{self._name} gives {hidden.shape[1]} tokens for {grid[0]}×{grid[1]} patches; '
                'such a model is not supported'
            )
        return extra


class _Stages(Encoder):
    """A backbone with a map of each stage, as ConvNeXt and Swin."""

    def __init__(self, model: nn.Module, config: Any, blocks: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        count = len(config.depths)
        self._blocks = chosen_blocks(blocks, count, type(model).__name__)
        self.divisor = _whole(getattr(config, 'patch_size', 4)) * 2 ** (count - 1)
        find_side(self, None, type(model).__name__)

    def forward(self, images: Tensor) -> Encoded:
        """Encodes images ``(N, 3, H, W)``."""
        stages = self.model(pixel_values=images).feature_maps[1:]  # the stem comes first
        return Encoded([stages[number] for number in self._blocks], stages[-1])


class _Levels(Encoder):
    """SAM 2's encoder: the levels of its neck, of which the last one is the image embedding."""

    def __init__(self, model: nn.Module, config: Any, blocks: Sequence[int]) -> None:
        super().__init__()
        self.model, inner = model, config.backbone_config
        name = type(model).__name__
        self._blocks = chosen_blocks(blocks, config.num_feature_levels, name)
        try:
            patch = _whole(inner.patch_stride)
            coarsest = patch * _whole(inner.query_stride) ** inner.num_query_pool_stages
            window = patch * inner.window_size_per_stage[0]  # of its position embedding
        except AttributeError as error:
            raise ValueError(f'a {name} on a {type(inner).__name__} is not supported') from error
        self.divisor = math.lcm(coarsest, window)
        find_side(self, None, name)

    def forward(self, images: Tensor) -> Encoded:
        """Encodes images ``(N, 3, H, W)``."""
        levels = self.model(pixel_values=images).fpn_hidden_states
        return Encoded([levels[number] for number in self._blocks], levels[-1])


def _are_vectors(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2


def _whole(size: Any) -> int:
    sizes = set(size) if isinstance(size, (list, tuple)) else {size}
    if len(sizes) != 1 or not all(isinstance(x, int) for x in sizes):
        raise ValueError(f'a model with patches of {size} pixels is not supported')
    return sizes.pop()


def _last_norm(model: nn.Module, channels: int) -> nn.Module | None:
    """Finds the norm behind all blocks; none of a model that ends with a neck."""
    for name, module in model.named_modules():
        parents, _, own = name.rpartition('.')
        near = own in LAST_NORMS and '.' not in parents  # not one inside a block
        if near and getattr(module, 'normalized_shape', None) == (channels,):
            return module
    return None
