"""The augmentation of the model zoo, for recipes of small data sets that have less."""

from __future__ import annotations

from mmengine.config import Config

from mmkd_plugin.words import type_name


def zoo(cfg: Config) -> None:
    """Gives the train pipeline random scales, crops, flips and colours.

    They are mmsegmentation's for Cityscapes: scales from 0.5 to 2 times the size of the images. A
    detector's crops have the size of the images, and smaller pictures are padded to it.

    Args:
        cfg (Config): A config whose train pipeline loads, changes and packs images; its validation
            pipeline has their size. Changed in place.
    """
    dataset = cfg.train_dataloader.dataset
    scale = next(
        step.scale
        for step in cfg.val_dataloader.dataset.pipeline
        if type_name(step.type) == 'Resize'
    )
    loaders = [step for step in dataset.pipeline if type_name(step.type).startswith('Load')]
    resize = dict(type='RandomResize', scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True)
    change = [dict(type='RandomFlip', prob=0.5), dict(type='PhotoMetricDistortion')]
    if cfg.default_scope == 'mmseg':
        crop = dict(type='RandomCrop', crop_size=cfg.crop_size, cat_max_ratio=0.75)
    else:
        crop = dict(type='RandomCrop', crop_size=scale[::-1], allow_negative_crop=True)
        pad = dict(img=(114, 114, 114))
        change.append(dict(type='Pad', size=tuple(scale), pad_val=pad))
    dataset.pipeline = [*loaders, resize, crop, *change, dataset.pipeline[-1]]
