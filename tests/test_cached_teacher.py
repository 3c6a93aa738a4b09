"""CachedTeacher: what it gives against the teacher itself, real runs with it, and its errors."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DATASETS, DefaultScope
from mmengine.visualization import Visualizer
from torch import Tensor

from mmkd_plugin.cached_teacher import CachedTeacher, wire
from mmkd_plugin.registry import TRANSFORMS
from mmkd_plugin.stack import safe_loading
from mmkd_plugin.taps import Tap, as_list
from mmkd_plugin.teacher import Teacher
from mmkd_plugin.teacher_cache import TeacherCache
from tests import models
from tests.caches import load_tool, use_cache, write_cache
from tests.runs import config, needs_ops

CLASSES = dict(mmseg=11, mmdet=10)
TAPS = dict(mmseg='decode_head.conv_seg', mmdet='neck')
BOTH = ['mmseg', pytest.param('mmdet', marks=needs_ops)]

RESIZE = dict(type='RandomResize', scale=(128, 128), ratio_range=(1.0, 1.5), keep_ratio=True)
CROP = dict(type='RandomCrop', crop_size=(128, 128))
FLIP = dict(type='RandomFlip', prob=0.5)


@pytest.fixture(autouse=True)
def own_globals():
    """Leaves no logger, message hub or default scope of a run behind."""
    kinds = (MMLogger, MessageHub, Visualizer, DefaultScope)
    before = [set(kind._instance_dict) for kind in kinds]
    with safe_loading():
        yield
    for kind, names in zip(kinds, before):
        for name in set(kind._instance_dict) - names:
            kind._instance_dict.pop(name)


def model_of(scope: str, width: int = 8) -> dict:
    if scope == 'mmseg':
        return models.pspnet(width, CLASSES[scope], size=(128, 128))
    return models.retinanet(width, CLASSES[scope])


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes of DigitScenes."""
    folder = tmp_path_factory.mktemp('scenes') / 'digit_scenes'
    load_tool('make_digit_scenes').main(['--out', str(folder), '--train', '6', '--val', '1'])
    return folder


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Weights of teachers that see a pixel as it is: they mix channels, and halve by averaging.

    A network of ordinary weights answers to a shift of one pixel with other maps. These move with
    the image, so that what is left is the error of the cache.
    """
    folder, files = tmp_path_factory.mktemp('teachers'), {}
    for scope in CLASSES:
        model = models.build(model_of(scope, 16))
        for module in model.modules():
            if not isinstance(module, torch.nn.Conv2d):
                continue
            out, into, side, _ = module.weight.shape
            mix = torch.randn(out, into, 1, 1, generator=torch.Generator().manual_seed(out))
            profile = torch.zeros(side, side)
            middle = side // 2
            if module.stride == (1, 1):
                profile[middle, middle] = 1
            elif side > 1:  # not the shortcuts, which skip pixels
                profile[middle : middle + 2, middle : middle + 2] = 0.25
            module.weight.data = mix * profile * (2 / into) ** 0.5
        files[scope] = str(folder / f'{scope}.pth')
        torch.save(dict(state_dict=model.state_dict()), files[scope])
    return files


def recipe(scope: str, scenes: Path, checkpoints: dict, *steps: dict, **changes: Any) -> Config:
    """A distilled run on the scenes, with these transforms after those that load."""
    loss = dict(type='mmkd_plugin.PixelWiseLoss') if scope == 'mmseg' else models.cwd(tau=1)
    cfg = config(
        dict(
            _scope_=scope,
            type='mmkd_plugin.Distiller',
            student=model_of(scope),
            teacher=dict(config=model_of(scope, 16), checkpoint=checkpoints[scope]),
            distill=dict(term=dict(tap=TAPS[scope], loss=loss)),
        ),
        scenes,
        scenes.parent / 'work_dir',
        2,
        **changes,
    )
    dataset = cfg.train_dataloader.dataset
    if scope == 'mmseg':
        dataset.data_prefix = dict(img_path='img_dir/train', seg_map_path='ann_dir/train')
        dataset.metainfo = dict(classes=list('b0123456789'), palette=[[i] * 3 for i in range(11)])
    else:
        dataset.data_prefix = dict(img='img_dir/train')
        dataset.ann_file = 'annotations/instances_train.json'
        dataset.metainfo = dict(classes=tuple('0123456789'))
    dataset.pipeline = [*dataset.pipeline[:2], *steps, dataset.pipeline[-1]]
    return cfg


@pytest.fixture(scope='module')
def caches(scenes, checkpoints, tmp_path_factory) -> dict[str, str]:
    """The caches of both recipes, at 128 pixels."""
    folder = tmp_path_factory.mktemp('caches')
    found = {}
    for scope in CLASSES:
        with safe_loading():
            cfg = recipe(scope, scenes, checkpoints, RESIZE, CROP, FLIP)
            found[scope] = write_cache(cfg, folder / scope)
    return found


def samples_of(cfg: Config, seed: int, count: int = 6) -> list[dict]:
    """What the data set of a wired config gives."""
    random.seed(seed)
    np.random.seed(seed)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    return [dataset[i] for i in range(count)]


def both_sides(cfg: Config, path: str, seed: int = 0) -> list[tuple[list[Tensor], list[Tensor]]]:
    """For each image the maps of the teacher itself, and those of the cache."""
    scope = cfg.default_scope
    tap = Tap.parse(TAPS[scope])
    student = models.build(model_of(scope))
    online = Teacher(**cfg.model.teacher)
    cached = CachedTeacher(path)
    for teacher in (online, cached):
        teacher.prepare(student.data_preprocessor, [tap], torch.device('cpu'))
    wired = use_cache(cfg, path)
    wire(wired)
    found = []
    for item in samples_of(wired, seed):
        data = student.data_preprocessor(pseudo_collate([item]), True)
        found.append(
            tuple(
                as_list(t(data['inputs'], data['data_samples'], [tap])[tap])
                for t in (online, cached)
            )
        )
    return found


def error(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Root mean square of the difference, relative to the spread within channels.

    Away from the border, where the teacher itself sees less of the scene; and without the means of
    the channels, which hold what it sees of the whole.
    """
    wrong = spread = 0.0
    for maps in pairs:
        cut = maps[0].shape[-1] // 4
        a, b = (x[..., cut:-cut, cut:-cut] for x in maps)
        a, b = (x - x.mean((2, 3), keepdim=True) for x in (a, b))
        wrong, spread = wrong + ((a - b) ** 2).sum(), spread + (a**2).sum()
    return float((wrong / spread) ** 0.5)


# --- what it gives --------------------------------------------------------------------------------


@pytest.mark.parametrize('scope', BOTH)
def test_without_augmentation_the_maps_are_the_teachers_in_half_precision(
    scope, scenes, checkpoints, caches
):
    cfg = recipe(scope, scenes, checkpoints, dict(type='Resize', scale=(128, 128), keep_ratio=True))
    pairs = both_sides(cfg, caches[scope])
    assert len(pairs) == 6
    for online, cached in pairs:
        assert len(online) == len(cached) == (1 if scope == 'mmseg' else 5)
        for a, b in zip(online, cached):
            assert torch.equal(a.half().float(), b)


@pytest.mark.parametrize('scope', BOTH)
def test_no_other_place_of_augmented_maps_is_nearer_to_the_teachers(
    scope, scenes, checkpoints, caches
):
    pairs = both_sides(recipe(scope, scenes, checkpoints, RESIZE, CROP, FLIP), caches[scope])
    for level in range(1 if scope == 'mmseg' else 2):
        online, cached = zip(*((a[level], b[level]) for a, b in pairs))
        right = error(list(zip(online, cached)))
        others = [[x.flip(3) for x in cached], [x.flip(2) for x in cached]]
        others += [[x.roll(by, dim) for x in cached] for by in (-1, 1) for dim in (2, 3)]
        assert right < 0.9 * min(error(list(zip(online, other))) for other in others)
        assert right < (0.5 if scope == 'mmseg' else 0.9)


class Coordinates:
    """Puts the place of each pixel, in the image as loaded, into the pixel."""

    def __call__(self, results: dict) -> dict:
        rows, cols = np.mgrid[: results['img'].shape[0], : results['img'].shape[1]] + 0.5
        results['img'] = np.stack([rows, cols, np.ones_like(rows)], 2).astype(np.float32)
        return results


def bilinear(maps: np.ndarray, y: float, x: float) -> np.ndarray:
    """Reads ``(C, H, W)`` at a place in cells, in float64; constant beyond the centres."""
    (top, left), weights = np.floor([y, x]).astype(int), []
    value = np.zeros(len(maps))
    for row, part in ((top, 1 - (y - top)), (top + 1, y - top)):
        for col, share in ((left, 1 - (x - left)), (left + 1, x - left)):
            i, j = (int(np.clip(k, 0, n - 1)) for k, n in zip((row, col), maps.shape[1:]))
            value += part * share * maps[:, i, j].astype(np.float64)
            weights.append(part * share)
    assert np.isclose(sum(weights), 1)
    return value


@pytest.mark.parametrize('scope', BOTH)
@pytest.mark.parametrize('seen', [None, '96,96'])
def test_augmented_maps_are_the_stored_ones_read_where_the_pixels_came_from(
    scope, seen, scenes, checkpoints, caches, tmp_path
):
    cfg = recipe(scope, scenes, checkpoints, RESIZE, CROP, FLIP)
    path = caches[scope] if seen is None else write_cache(cfg, tmp_path / 'cache', scale=seen)
    TRANSFORMS.register_module(module=Coordinates, force=True)
    cfg = use_cache(cfg, path, ignore=['mmkd_plugin.Coordinates'])
    pipeline = cfg.train_dataloader.dataset.pipeline
    pipeline.insert(1, dict(type='mmkd_plugin.Coordinates'))
    wire(cfg)
    cache, tap = TeacherCache(path), TAPS[scope]
    for item in samples_of(cfg, seed=3, count=3):
        sample = item['data_samples']
        record = cache.read(f'img_dir/train/{Path(sample.img_path).name}', tap)
        assert record.seen == ((128, 128) if seen is None else (96, 96))
        for number, whole in enumerate(record.maps):
            found = sample.get('mmkd_teacher').get(f'{tap}#{number}').numpy()
            stride = 128 // found.shape[1]
            assert found.shape[1:] == (128 // stride, 128 // stride)
            if stride > 16:
                continue
            for i, j in np.random.default_rng(0).integers(0, 128 // stride, (6, 2)):
                # the centre lies between four pixels
                rows, cols = (slice(k * stride + stride // 2 - 1, k * stride + stride // 2 + 1)
                              for k in (i, j))  # fmt: skip
                y, x, picture = item['inputs'][:, rows, cols].double().mean((1, 2)).tolist()
                assert picture == 1
                place = ((v / 128 * n - 0.5) for v, n in zip((y, x), whole.shape[1:]))
                expected = bilinear(whole, *place)
                assert np.abs(found[:, i, j] - expected).max() < 2e-3 * np.abs(whole).max()
