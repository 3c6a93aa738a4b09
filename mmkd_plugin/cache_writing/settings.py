"""Settings: how a cache is written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Settings:
    """How a cache is written.

    Args:
        out (str): Its folder.
        dtype (str): How numbers are stored. Defaults to ``'float16'``.
        top_k (int, optional): How many logits of each position are stored. Defaults to None: all.
        views (int, optional): How many views of each image are drawn. Defaults to None: whole
            images.
        channels (int, optional): How many mixtures of channels are stored. Defaults to None: the
            channels.
        projection (str): How they are mixed, ``'random'`` or ``'learnt'``. Defaults to
            ``'random'``.
        scale (tuple[int, int], optional): Width and height of the whole images. Defaults to None:
            as the train pipeline has it.
        mirrored (bool, optional): Whether mirrored images are stored. Defaults to None: if the
            train pipeline mirrors.
        workers (int): Processes that load images. Defaults to 2.
    """

    out: str
    dtype: str = 'float16'
    top_k: int | None = None
    views: int | None = None
    channels: int | None = None
    projection: str = 'random'
    scale: tuple[int, int] | None = None
    mirrored: bool | None = None
    workers: int = 2
