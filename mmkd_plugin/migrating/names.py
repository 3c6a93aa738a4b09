"""Names of shipped configs: what an older one is called today, and its published weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mmkd_plugin.stack import shipped_config


def current_name(path: str) -> str:
    """The name that a shipped config has today.

    Hyphens have taken the place of underscores, and parts of a name have changed places. The
    published weights still lie under the older name.

    Args:
        path (str): Such as ``'mmdet::faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py'``.

    Returns:
        str: The name of a file that exists, or the path as it is.
    """
    if '::' not in path:
        return path
    file = shipped_config(path)
    if file.is_file() or not file.parent.is_dir():
        return path
    same = [one for one in sorted(file.parent.glob('*.py')) if _core(one.name) == _core(file.name)]
    same += [
        file.with_name(f'{Path(model["Name"]).name}.py')
        for model in _models(file.parent)
        if Path(str(model.get('Weights'))).parent.name.replace('%2B', '+') == file.stem
    ]
    found = next((one for one in same if one.is_file()), None)
    return path if found is None else f'{path.rpartition("/")[0]}/{found.name}'


def weights_of(path: str) -> str | None:
    """The published weights of a shipped config.

    Args:
        path (str): Such as ``'mmseg::pspnet/pspnet_r101-d8_4xb2-40k_cityscapes-512x1024.py'``.

    Returns:
        str | None: Their address; None if none are published.
    """
    file = shipped_config(path)
    for model in _models(file.parent):
        if model.get('Name') == file.stem:
            return model.get('Weights')
    return None


def _core(name: str) -> str:
    """A name without what was changed in all of them: ``8x8`` has become ``8xb8``."""
    return re.sub('[-_]', '', re.sub(r'(\d)xb(\d)', r'\1x\2', name))


def _models(folder: Path) -> Iterator[dict[str, Any]]:
    """The models in the index files of a folder of configs."""
    for file in sorted(folder.glob('metafile.y*ml')):
        content = yaml.safe_load(file.read_text(encoding='utf-8'))
        yield from (content.get('Models') or []) if isinstance(content, dict) else content
