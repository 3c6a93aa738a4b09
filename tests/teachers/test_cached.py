"""CachedTeacher: compared with the teacher itself, in real runs, and its errors."""

from __future__ import annotations

import copy
import multiprocessing
import random
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from torch import Tensor

from mmkd_plugin.cache.store import TeacherCache, close, mirrored
from mmkd_plugin.cache.wiring import unwire, wire
from mmkd_plugin.checkpoint import read_checkpoint
from mmkd_plugin.paraphrasing import stage_config
from mmkd_plugin.queries import Queries
from mmkd_plugin.registry import TRANSFORMS
from mmkd_plugin.stack import safe_loading
from mmkd_plugin.taps import Tap, Taps, as_list
from mmkd_plugin.taps.dry_run import DryRun
from mmkd_plugin.teachers import Trial
from mmkd_plugin.teachers.cached import CachedTeacher
from mmkd_plugin.teachers.configs import build_teacher
from mmkd_plugin.teachers.online import OnlineTeacher
from mmkd_plugin.views import View
from tests import stock_models
from tests.caches import use_cache, write_cache
from tests.runs import Record, assert_same, config, needs_ops, save_weights, train
from tests.teaching import prepare, taught
from tests.tools.tool_runs import load_tool

CLASSES = dict(mmseg=11, mmdet=10)
TAPS = dict(mmseg='decode_head.conv_seg', mmdet='neck')
BOTH = ['mmseg', pytest.param('mmdet', marks=needs_ops)]

RESIZE = dict(type='RandomResize', scale=(128, 128), ratio_range=(1.0, 1.5), keep_ratio=True)
FIXED = dict(type='Resize', scale=(128, 128), keep_ratio=True)
CROP = dict(type='RandomCrop', crop_size=(128, 128))
FLIP = dict(type='RandomFlip', prob=0.5)


pytestmark = pytest.mark.usefixtures('own_globals')


def model_of(scope: str, width: int = 8) -> dict:
    if scope == 'mmseg':
        return stock_models.pspnet(width, CLASSES[scope], size=(128, 128))
    return stock_models.retinanet(width, CLASSES[scope])


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
        model = stock_models.build(model_of(scope, 16))
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
    """A distilled run on the scenes, with these transforms after the loaders."""
    loss = dict(type='mmkd_plugin.PixelWiseLoss') if scope == 'mmseg' else stock_models.cwd(tau=1)
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
    student = stock_models.build(model_of(scope))
    online = OnlineTeacher(**cfg.model.teacher)
    cached = CachedTeacher(path)
    for teacher in (online, cached):
        prepare(teacher, student.data_preprocessor, [tap])
    wired = use_cache(cfg, path)
    wire(wired)
    found = []
    for item in samples_of(wired, seed):
        data = student.data_preprocessor(pseudo_collate([item]), True)
        found.append(
            tuple(
                as_list(taught(t, data['inputs'], data['data_samples'], [tap])[tap])
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


def half_precision(online: Tensor, cached: Tensor) -> None:
    """Checks that maps differ by what float16 rounds off, half a unit of its 11 bits.

    Two runs of a convolution may differ in the last digit of float32 themselves.
    """
    peak = float(online.abs().max())
    torch.testing.assert_close(cached, online, rtol=2**-11 * 1.01, atol=1e-5 * peak)


# --- what it gives --------------------------------------------------------------------------------


@pytest.mark.parametrize('scope', BOTH)
def test_without_augmentation_the_maps_are_the_teachers_in_half_precision(
    scope, scenes, checkpoints, caches
):
    cfg = recipe(scope, scenes, checkpoints, FIXED)
    pairs = both_sides(cfg, caches[scope])
    assert len(pairs) == 6
    for online, cached in pairs:
        assert len(online) == len(cached) == (1 if scope == 'mmseg' else 5)
        for a, b in zip(online, cached, strict=True):
            half_precision(a, b)


@pytest.mark.parametrize('scope', BOTH)
def test_mirrored_images_have_maps_of_their_own(scope, scenes, checkpoints, caches, tmp_path):
    cfg = recipe(scope, scenes, checkpoints, FIXED, dict(FLIP, prob=1.0))
    for online, cached in both_sides(cfg, caches[scope]):
        for a, b in zip(online, cached, strict=True):
            half_precision(a, b)
    other = write_cache(cfg, tmp_path / 'cache', mirrored=False)
    assert TeacherCache(other).meta['mirrored'] is False
    (online, *_), (cached, *_) = both_sides(cfg, other)[0]
    assert (online - cached).abs().max() > 0.01 * online.abs().max()
    (straight, *_) = both_sides(recipe(scope, scenes, checkpoints, FIXED), other)[0][1]
    assert torch.equal(straight.flip(3), cached)


@pytest.mark.parametrize('scope', BOTH)
def test_no_other_place_of_augmented_maps_is_nearer_to_the_teachers(
    scope, scenes, checkpoints, caches
):
    pairs = both_sides(recipe(scope, scenes, checkpoints, RESIZE, CROP, FLIP), caches[scope])
    for level in range(1 if scope == 'mmseg' else 2):
        online, cached = zip(*((a[level], b[level]) for a, b in pairs), strict=True)
        right = error(list(zip(online, cached, strict=True)))
        others = [[x.flip(3) for x in cached], [x.flip(2) for x in cached]]
        others += [[x.roll(by, dim) for x in cached] for by in (-1, 1) for dim in (2, 3)]
        assert right < 0.9 * min(error(list(zip(online, other, strict=True))) for other in others)
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
            i, j = (
                int(np.clip(k, 0, n - 1)) for k, n in zip((row, col), maps.shape[1:], strict=True)
            )
            value += part * share * maps[:, i, j].astype(np.float64)
            weights.append(part * share)
    assert np.isclose(sum(weights), 1)
    return value


@pytest.mark.parametrize('scope', BOTH)
@pytest.mark.parametrize('seen', [None, (96, 96)])
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
    cache, tap, found_mirrored = TeacherCache(path), TAPS[scope], set()
    for item in samples_of(cfg, seed=3, count=3):
        sample = item['data_samples']
        mirrors = sample.get('mmkd_geometry').mirrors
        found_mirrored |= {mirrors}
        stored = mirrored(tap) if mirrors else tap
        record = cache.read(f'img_dir/train/{Path(sample.img_path).name}', stored)
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
                if mirrors:
                    x = 128 - x
                place = ((v / 128 * n - 0.5) for v, n in zip((y, x), whole.shape[1:], strict=True))
                expected = bilinear(whole, *place)
                assert np.abs(found[:, i, j] - expected).max() < 2e-3 * np.abs(whole).max()
    assert found_mirrored == {False, True}


@needs_ops
def test_padding_holds_what_the_teacher_gives_on_padding(scenes, checkpoints, caches):
    narrow = [FIXED, dict(type='RandomCrop', crop_size=(96, 64))]
    cfg = recipe('mmdet', scenes, checkpoints, *narrow)
    student = stock_models.build(model_of('mmdet'))
    tap = Tap.parse('neck')
    online, cached = OnlineTeacher(**cfg.model.teacher), CachedTeacher(caches['mmdet'])
    runs = [prepare(teacher, student.data_preprocessor, [tap]) for teacher in (online, cached)]
    assert [x.shape for x in runs[0].maps[tap]] == [x.shape for x in runs[1].maps[tap]]
    cfg = use_cache(cfg, caches['mmdet'])
    wire(cfg)
    (small,) = samples_of(cfg, 0, 1)
    cfg = use_cache(recipe('mmdet', scenes, checkpoints, FIXED), caches['mmdet'])
    wire(cfg)
    items = [small, samples_of(cfg, 0, 2)[1]]
    data = student.data_preprocessor(pseudo_collate(items), True)
    theirs = online.read(data['inputs'], data['data_samples'], [tap])[tap]
    ours = taught(cached, data['inputs'], data['data_samples'], [tap])[tap]
    assert [x.shape for x in theirs] == [x.shape for x in ours]
    height, width = small['inputs'].shape[1:]
    assert {height, width} == {64, 96}
    # the teacher sees it normalised, with zeros around
    blank = online.read(torch.zeros(1, 3, 128, 128), None, [tap])[tap]
    for x, maps in zip(blank, ours, strict=True):
        fill = x[0, :, x.shape[2] // 2, x.shape[3] // 2, None]
        stride = 128 // maps.shape[2]
        below = maps[0][:, -(-height // stride) :].flatten(1)
        beside = maps[0][:, :, -(-width // stride) :].flatten(1)
        for outside in (below, beside):
            assert torch.allclose(outside, fill.expand_as(outside), atol=1e-5)
    assert torch.allclose(ours[0][1], theirs[0][1], rtol=2**-10, atol=1e-3)


# --- in a run -------------------------------------------------------------------------------------


def _read_on(path: str, tap: str, stop: Any, queue: Any) -> None:
    cache, rounds = TeacherCache(path), 0
    images = [image for image, _ in list(cache.keys())]
    while rounds == 0 or not stop.is_set():
        for image in images:
            cache.read(image, tap)
        rounds += 1
    queue.put(rounds)


@pytest.mark.parametrize('scope', BOTH)
def test_a_student_trains_without_a_teacher_in_memory(scope, scenes, checkpoints, caches, tmp_path):
    settings = dict(workers=2, save_every=2)
    cfg = use_cache(
        recipe(scope, scenes, checkpoints, RESIZE, CROP, FLIP, **settings), caches[scope]
    )
    cfg.work_dir = str(tmp_path / 'run')
    wire(cfg)
    close(caches[scope])
    context = multiprocessing.get_context('fork')
    stop, queue = context.Event(), context.Queue()
    reader = context.Process(target=_read_on, args=(caches[scope], TAPS[scope], stop, queue))
    reader.start()
    record = Record()
    runner = train(cfg, record)
    stop.set()
    assert queue.get(timeout=600) >= 1
    reader.join()
    assert all(np.isfinite(losses['distill.term.loss']) for losses in record.losses)
    assert record.losses[0]['distill.term.loss'] > 0
    teacher = runner.model.teachers['teacher']
    assert isinstance(teacher, CachedTeacher) and copy.deepcopy(teacher) is teacher
    assert not [v for v in vars(teacher).values() if isinstance(v, torch.nn.Module)]
    log = Path(runner.log_dir, f'{runner.timestamp}.log').read_text()
    assert f'cached in {caches[scope]} (' in log and 'not in memory; reads ' + TAPS[scope] in log
    student = stock_models.build(model_of(scope))
    saved = read_checkpoint(tmp_path / 'run' / 'iter_2.pth')['state_dict']
    assert not any(student.load_state_dict(saved))


def test_a_run_with_a_cache_is_that_with_the_teacher(scenes, checkpoints, caches, tmp_path):
    online = recipe('mmseg', scenes, checkpoints, FIXED)
    runs = []
    for cfg in (online, use_cache(online, caches['mmseg'])):
        cfg.work_dir = str(tmp_path / str(len(runs)))
        wire(cfg)
        runs.append(Record())
        train(cfg, runs[-1])
    for one, other in zip(runs[0].inputs, runs[1].inputs, strict=True):
        assert_same(one, other)
    assert_same(runs[0].start, runs[1].start)
    for one, other in zip(runs[0].losses, runs[1].losses, strict=True):
        for key, value in one.items():
            assert other[key] == pytest.approx(value, rel=2e-3), key


def test_a_run_goes_on_from_a_checkpoint(scenes, checkpoints, caches, tmp_path):
    def run(folder: str, **changes: Any) -> tuple[Any, Record]:
        cfg = recipe('mmseg', scenes, checkpoints, RESIZE, CROP, FLIP, save_every=2)
        cfg = use_cache(cfg, caches['mmseg'])
        cfg.merge_from_dict(dict(work_dir=str(tmp_path / folder), **changes))
        cfg.train_cfg.max_iters = 4
        wire(cfg)
        record = Record()
        return train(cfg, record), record

    whole, seen = run('whole')
    resumed, again = run('again', resume=True, load_from=str(tmp_path / 'whole/iter_2.pth'))
    assert resumed.iter == 4 and len(again.losses) == 2
    assert set(again.losses[0]) == set(seen.losses[0])
    assert again.start.keys() == whole.model.state_dict().keys()


def test_several_terms_share_a_tap_and_margins_come_along(scenes, checkpoints, tmp_path):
    cfg = recipe('mmseg', scenes, checkpoints, FIXED)
    stage = 'backbone.layer2@pre_relu'
    loss = dict(type='mmkd_plugin.OverhaulLoss', loss_weight=1)
    cfg.model.distill = dict(
        hint=dict(tap=[stage], loss=stock_models.cwd()),
        overhaul=dict(tap=stage, loss=loss),
        logits=dict(tap='class_scores', loss=dict(type='mmkd_plugin.PixelWiseLoss')),
    )
    path = write_cache(cfg, tmp_path / 'cache', top_k=4)
    cache = TeacherCache(path)
    assert list(cache.meta['taps']) == [stage, 'class_scores']
    assert len(list(cache.keys())) == 12
    assert cache.meta['taps'][stage]['top_k'] is None
    assert cache.meta['taps']['class_scores']['top_k'] == 4
    wired = use_cache(cfg, path)
    wire(wired)
    with DefaultScope.overwrite_default_scope('mmseg'):
        built = [stock_models.build(copy.deepcopy(one.model)) for one in (cfg, wired)]
    margins = [dict(one.distill.overhaul.named_buffers()) for one in built]
    assert_same(*margins)
    assert 'backbone.layer2' in built[1].distill.overhaul.norms.names[0]
    data = pseudo_collate(samples_of(wired, 0, 2))
    data = built[1].data_preprocessor(data, True)
    for one in built:
        one.eval().student.load_state_dict(built[0].student.state_dict())
        one.distill.load_state_dict(built[0].distill.state_dict())
    with torch.no_grad():
        losses = [one(**copy.deepcopy(data), mode='loss') for one in built]
    for key in ('distill.hint.loss', 'distill.overhaul.loss'):
        assert float(losses[1][key]) == pytest.approx(float(losses[0][key]), rel=1e-3)
    assert losses[1]['distill.logits.loss'] > 0

    cfg.model.distill.logits.loss = stock_models.cwd()
    with pytest.raises(ValueError, match=r"holds the 4 largest channels of 'class_scores'"):
        wire(use_cache(cfg, path))


@pytest.mark.parametrize('dtype', ['float16', 'uint8'])
def test_uint8_is_smaller_and_nearly_the_same(dtype, scenes, checkpoints, caches, tmp_path):
    cfg = recipe('mmseg', scenes, checkpoints, FIXED)
    path = write_cache(cfg, tmp_path / 'cache', dtype=dtype)
    image, tap = 'img_dir/train/00000.png', 'decode_head.conv_seg'
    exact, ours = (TeacherCache(p).read(image, tap).maps[0] for p in (caches['mmseg'], path))
    steps = np.ptp(exact, axis=(1, 2)).max() / 255
    assert np.array_equal(ours, exact) is (dtype == 'float16')
    assert np.abs(ours - exact).max() < steps


@pytest.mark.parametrize(
    'wrap',
    [
        lambda d: dict(type='RepeatDataset', times=3, dataset=d),
        lambda d: dict(type='ConcatDataset', datasets=[d, copy.deepcopy(d)]),
    ],
)
def test_data_sets_in_wrappers(wrap, scenes, checkpoints, caches, tmp_path):
    cfg = use_cache(recipe('mmseg', scenes, checkpoints, RESIZE, CROP, FLIP), caches['mmseg'])
    cfg.train_dataloader.dataset = wrap(cfg.train_dataloader.dataset)
    cfg.work_dir = str(tmp_path)
    wire(cfg)
    wire(cfg)  # wiring twice changes nothing
    assert str(cfg.train_dataloader.dataset).count('LoadTeacherMaps') == (
        2 if 'datasets' in cfg.train_dataloader.dataset else 1
    )
    assert len(cfg.custom_hooks) == 1
    record = Record()
    train(cfg, record)
    assert record.losses[1]['distill.term.loss'] > 0


def test_the_student_of_a_wired_config_trains_alone(scenes, checkpoints, caches):
    choice = dict(type='RandomApply', transforms=[FLIP], prob=0.5)
    cfg = recipe('mmseg', scenes, checkpoints, RESIZE, choice)
    pack = cfg.train_dataloader.dataset.pipeline[-1]
    before = copy.deepcopy(cfg.train_dataloader)
    wired = use_cache(cfg, caches['mmseg'])
    wire(wired)
    assert wired.train_dataloader.dataset.pipeline[-2] == dict(
        type='mmkd_plugin.Recorded', transform=pack
    )
    assert wired.train_dataloader.to_dict() != before.to_dict()
    unwire(wired)
    assert wired.train_dataloader.to_dict() == before.to_dict()


def test_a_paraphraser_learns_from_a_cache(scenes, checkpoints, tmp_path):
    cfg = recipe('mmseg', scenes, checkpoints, RESIZE, CROP, FLIP)
    cfg.model.distill = dict(
        ft=dict(
            tap='decode_head.bottleneck',
            connector=dict(type='mmkd_plugin.Translator'),
            teacher_connector=dict(type='mmkd_plugin.Paraphraser'),
            loss=dict(type='mmkd_plugin.FactorTransferLoss'),
        )
    )
    cfg = use_cache(cfg, write_cache(cfg, tmp_path / 'cache'))
    stage_config(cfg, str(tmp_path / 'stage'))
    wire(cfg)
    record = Record()
    train(cfg, record)
    assert record.losses[1]['ft.loss'] > 0


# --- what is wrong --------------------------------------------------------------------------------


def test_a_batch_without_maps_says_which_line_to_add(scenes, checkpoints, caches, tmp_path):
    cfg = use_cache(recipe('mmseg', scenes, checkpoints), caches['mmseg'])
    cfg.work_dir = str(tmp_path)
    with pytest.raises(ValueError, match=r'the batch carries no maps of it: train with tools/tr'):
        train(cfg)


def test_an_image_that_is_missing_is_named_before_training(scenes, checkpoints, caches, tmp_path):
    more = tmp_path / 'digit_scenes'
    shutil.copytree(scenes, more)
    for folder in ('img_dir', 'ann_dir'):
        shutil.copy(more / folder / 'train/00000.png', more / folder / 'train/00009.png')
    cfg = use_cache(recipe('mmseg', more, checkpoints), caches['mmseg'])
    cfg.work_dir, record = str(tmp_path / 'run'), Record()
    cfg.train_dataloader.dataset.pipeline.insert(2, RESIZE)
    wire(cfg)
    words = r'lacks 1 of 7 training images: img_dir/train/00009\.png\. Run tools/cache_teacher\.py'
    with pytest.raises(ValueError, match=words):
        train(cfg, record)
    assert not record.losses


def test_an_image_that_has_changed(scenes, checkpoints, caches, tmp_path):
    more = tmp_path / 'digit_scenes'
    shutil.copytree(scenes, more)
    for folder in ('img_dir', 'ann_dir'):
        file = str(more / folder / 'train/00000.png')
        cv2.imwrite(file, cv2.imread(file, cv2.IMREAD_UNCHANGED)[:100])
    cfg = use_cache(recipe('mmseg', more, checkpoints, RESIZE), caches['mmseg'])
    wire(cfg)
    words = r'img_dir/train/00000\.png has changed since .* was written: it had \(128, 128\)'
    with pytest.raises(ValueError, match=words):
        samples_of(cfg, 0, 1)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            dict(model=dict(distill=dict(term=dict(tap='decode_head.bottleneck')))),
            'holds no maps of decode_head.bottleneck; it has: decode_head.conv_seg. Write a cache',
        ),
        (
            dict(model=dict(data_preprocessor=dict(batch_augments=[dict(type='Mixing')]))),
            'changes whole batches, which cannot be replayed',
        ),
    ],
)
def test_a_config_that_does_not_fit_the_cache(change, words, scenes, checkpoints, caches):
    cfg = use_cache(recipe('mmseg', scenes, checkpoints, RESIZE), caches['mmseg'])
    cfg.merge_from_dict(change)
    with pytest.raises(ValueError, match=re.escape(words)):
        wire(cfg)


@pytest.mark.parametrize(
    ('steps', 'words'),
    [
        ([dict(type='Resize', scale=(96, 96), keep_ratio=True)], 'brings images to a scale in'),
        ([], 'in another way than that of'),
        ([RESIZE, dict(type='RandomRotate', prob=0.5, degree=10)], '`RandomRotate` cannot be repl'),
    ],
)
def test_a_pipeline_that_does_not_fit_the_cache(steps, words, scenes, checkpoints, caches):
    cfg = use_cache(recipe('mmseg', scenes, checkpoints, *steps), caches['mmseg'])
    with pytest.raises(ValueError, match=words):
        wire(cfg)
    assert 'LoadTeacherMaps' not in str(cfg)


def test_images_that_are_loaded_otherwise(scenes, checkpoints, caches):
    cfg = use_cache(recipe('mmseg', scenes, checkpoints, RESIZE), caches['mmseg'])
    cfg.train_dataloader.dataset.pipeline[0].color_type = 'grayscale'
    with pytest.raises(ValueError, match=r"loads images in another way .*'grayscale'.*cache has"):
        wire(cfg)


def test_a_cache_of_another_teacher(scenes, checkpoints, caches, tmp_path):
    same = dict(config=model_of('mmseg', 16), checkpoint=checkpoints['mmseg'])
    CachedTeacher(caches['mmseg'], **same)
    online = dict(same, strict=False, inference=dict(precision='bf16'))  # of the same dict
    kept = dict(online, type='CachedTeacher', path=caches['mmseg'], name='teacher')
    assert isinstance(build_teacher(kept), CachedTeacher)
    other = save_weights(model_of('mmseg', 16), tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=rf'written by a teacher of another checkpoint: .*{other}'):
        CachedTeacher(caches['mmseg'], **{**same, 'checkpoint': other})
    with pytest.raises(ValueError, match='written by a teacher of another config'):
        CachedTeacher(caches['mmseg'], **{**same, 'config': model_of('mmseg', 8)})


ANSWERS = "teacher 'teacher' is a cache. It asks the teacher itself"


@pytest.mark.parametrize(
    ('line', 'view', 'key'),
    [
        (
            dict(
                student_tap='decode_head.conv_seg@input',
                teacher_tap='decode_head.conv_seg',
                through='decode_head.conv_seg@input',
            ),
            dict(entrance=Taps.parse('decode_head.conv_seg@input')),
            '.through',
        ),
        (dict(queries=dict(random=3)), dict(queries=Queries(random=3)), '.queries'),
        (
            dict(tap='roi_head.bbox_head.fc_cls'),
            dict(rois=Taps.parse('roi_head.bbox_head.fc_cls')),
            '',
        ),
    ],
)
def test_what_is_asked_about_the_student_needs_the_teacher_itself(
    line, view, key, scenes, checkpoints, caches
):
    cfg = use_cache(recipe('mmseg', scenes, checkpoints, RESIZE), caches['mmseg'])
    cfg.merge_from_dict({'model.distill': dict(cross=line)})
    words = f'distill.cross{key}: {ANSWERS}'
    with pytest.raises(ValueError, match=words):
        wire(cfg)
    view = View(Taps.parse('decode_head.conv_seg'), **view, term='distill.cross')
    preprocessor = stock_models.build(model_of('mmseg')).data_preprocessor
    with pytest.raises(ValueError, match=words):
        CachedTeacher(caches['mmseg']).prepare(
            Trial(None, preprocessor, DryRun()), [view], torch.device('cpu')
        )


def test_gradients_need_the_teacher_itself(caches):
    preprocessor = stock_models.build(model_of('mmseg')).data_preprocessor
    tap = Tap.parse('decode_head.conv_seg')
    teacher = CachedTeacher(caches['mmseg'])
    with pytest.raises(ValueError, match='gradient of its task loss, which needs the teacher its'):
        prepare(teacher, preprocessor, [tap], 'gradients')
    with pytest.raises(ValueError, match=r"holds no batch norm 'backbone\.bn9'"):
        teacher.norms([tap], ['backbone.bn9'])
    preprocessor.batch_augments = [torch.nn.Identity()]
    with pytest.raises(ValueError, match='Identity in `batch_augments` changes images after their'):
        prepare(teacher, preprocessor, [tap])


@pytest.mark.parametrize(
    ('teacher', 'words'),
    [
        ([dict(type='CachedTeacher', name='a')], 'teacher[0] has no `path`'),
        (dict(type='CachedTeacher', path='x', chekpoint='y'), 'did you mean `checkpoint`'),
        (
            dict(type='mmkd_plugin.CachedTeacher', path='none'),
            "teacher 'teacher'.path: no teacher cache at none; write it",
        ),
        (
            dict(path='x', ignore=['Mine']),
            "unknown key `path`; a teacher with type='mmkd_plugin.CachedTeacher' takes it (known: ",
        ),
        (dict(type='Cached', path='x'), "teacher; did you mean 'mmkd_plugin.CachedTeacher'?"),
    ],
)
def test_mistakes_in_the_dict(teacher, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        stock_models.distiller(
            model_of('mmseg'), teacher, dict(a=dict(tap='neck', loss=stock_models.cwd()))
        )
