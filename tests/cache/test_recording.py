"""Geometry: the record of stock pipelines is right, and maps are warped in the same way."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmdet.registry import TRANSFORMS as DET_TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from mmseg.models import SegDataPreProcessor
from mmseg.registry import TRANSFORMS as SEG_TRANSFORMS

from mmkd_plugin import stack
from mmkd_plugin.cache.geometry import Geometry, inside, replay
from mmkd_plugin.cache.recording import (
    IGNORED,
    KEY,
    REFUSED,
    REPLAYED,
    WRAPPERS,
    Recorded,
    record_training,
    recorded,
    train_pipelines,
)

# Pipelines on made-up images --------------------------------------------------------------------


def scene(seed: int, scope: str, shape: Sequence[int] | None = None) -> dict:
    """What loaders return: an image of an odd size with its labels."""
    rng = np.random.default_rng(seed)
    height, width = shape or rng.integers(97, 180, 2)
    results = dict(
        img=rng.integers(1, 256, (height, width, 3), np.uint8),
        img_path='a.png',
        img_id=seed,
        img_shape=(height, width),
        ori_shape=(height, width),
        gt_seg_map=rng.integers(0, 3, (height, width), np.uint8),
    )
    if scope == 'mmseg':
        return dict(results, seg_fields=['gt_seg_map'])
    corners = rng.uniform(0, 0.6, (3, 2)) * (width, height)
    sides = rng.uniform(0.2, 0.4, (3, 2)) * (width, height)
    return dict(
        results,
        gt_bboxes=HorizontalBoxes(np.hstack([corners, corners + sides]).astype(np.float32)),
        gt_bboxes_labels=np.arange(3),
        gt_ignore_flags=np.zeros(3, bool),
        gt_masks=BitmapMasks(rng.integers(0, 2, (3, height, width), np.uint8), height, width),
    )


def scene_for(pipeline: list[dict], scope: str, seed: int) -> dict:
    """One with what all its transforms can take."""
    results = scene(seed, scope)
    if 'RandomCenterCropPad' in str(pipeline):  # takes no masks, and only images of this type
        results['img'] = results['img'].astype(np.float32)
        del results['gt_masks']
    if 'RandomCenterCropPad' in str(pipeline) or 'Expand' in str(pipeline):  # no label to fill in
        del results['gt_seg_map']
    return results


def run(pipeline: list[dict], results: dict, scope: str, seed: int) -> dict | None:
    with DefaultScope.overwrite_default_scope(scope):
        steps = Compose(copy.deepcopy(pipeline))
    random.seed(seed)
    np.random.seed(seed)
    return steps(results)


def shipped(path: str) -> list[dict]:
    """The train pipeline of a shipped config, after the loaders."""
    cfg = Config.fromfile(stack.shipped_config(path))
    ((holder, key, _),) = train_pipelines(cfg)
    return [step for step in holder[key] if not step['type'].startswith('Load')]


def only_moving(steps: list) -> list:
    """The pipeline without changes of colour, and with zeros as padding."""
    kept = []
    for step in steps:
        if isinstance(step, list):
            kept.append(only_moving(step))
        elif step['type'] not in IGNORED:
            changed = {}
            if 'mean' in step:
                changed['mean'] = [0, 0, 0]
            if 'transforms' in step:
                changed['transforms'] = only_moving(step['transforms'])
            kept.append({**step, **changed})
    return kept


def coordinates(height: int, width: int) -> np.ndarray:
    """An image that holds the (x, y) of its pixels' centres; its third channel is 1."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([x, y, np.ones_like(x)], -1).astype(np.float32)


def check_against_truth(pipeline: list[dict], scope: str, seed: int) -> Geometry | None:
    """Sends the coordinates of pixels through the pipeline; they tell the origin of each."""
    pipeline = only_moving(pipeline)
    note = recorded(pipeline, scope)
    results = scene_for(pipeline, scope, seed)
    results['img'] = coordinates(*results['img'].shape[:2])
    truth = run(pipeline, copy.deepcopy(results), scope, seed)
    found = run(note, results, scope, seed)
    if truth is None:
        assert found is None
        return None
    x, y, shown = truth['inputs'].double().numpy()
    geometry = found['data_samples'].metainfo[KEY]
    assert torch.equal(found['inputs'], truth['inputs'])
    assert geometry.packed == shown.shape
    assert geometry.loaded == results['ori_shape']

    mask = inside(geometry, geometry.packed).numpy()
    # Interpolation mixes picture and padding where they meet: a border of one pixel of the last
    # resize.
    margin = 2 + int(np.ceil(2 * np.abs(geometry.matrix[[0, 1], [0, 1]]).max()))
    kernel = np.ones((2 * margin + 1,) * 2, np.uint8)
    deep = cv2.erode(mask.astype(np.uint8), kernel, borderValue=0).astype(bool)
    padding = ~cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)
    assert mask.any()
    if set(np.unique(shown)) <= {0, 1}:
        np.testing.assert_array_equal(mask, shown == 1)
    assert (shown[deep] > 0.999).all()
    assert (shown[padding] == 0).all()
    assert deep.any()
    rows, cols = np.nonzero(deep)
    back = np.linalg.inv(geometry.matrix) @ np.stack([cols + 0.5, rows + 0.5, np.ones(len(rows))])
    np.testing.assert_allclose(back[0], x[deep], atol=2e-3)
    np.testing.assert_allclose(back[1], y[deep], atol=2e-3)
    return geometry


def transform(kind: str, **settings: Any) -> dict:
    return dict(type=kind, **settings)


SEG_STEPS = {
    'resize': [transform('Resize', scale=(150, 101))],
    'resize by a factor': [transform('Resize', scale_factor=0.7)],
    'pillow': [transform('Resize', scale=(301, 200), keep_ratio=True)],
    'to a multiple': [transform('ResizeToMultiple', size_divisor=32)],
    'shortest edge': [transform('ResizeShortestEdge', scale=90, max_size=120)],
    'flips': [
        transform(
            'RandomFlip', prob=[0.3, 0.3, 0.3], direction=['horizontal', 'vertical', 'diagonal']
        ),
        transform('RandomFlip', prob=0.5, direction='vertical'),
    ],
    'crop': [transform('RandomCrop', crop_size=(70, 91), cat_max_ratio=0.6)],
    'centre crop': [transform('CenterCrop', crop_size=(91, 70))],
    'centre crop of a small image': [
        transform('CenterCrop', crop_size=(140, 120), auto_pad=True, pad_cfg=dict(type='Pad'))
    ],
    'crop, then pad, then flip, then resize': [
        transform('RandomCrop', crop_size=(70, 60)),
        transform('Pad', size=(110, 100)),
        transform('RandomFlip', prob=1.0),
        transform('Resize', scale=(201, 200)),
        transform('RandomCrop', crop_size=(190, 170)),
    ],
    'perhaps': [
        transform('RandomApply', transforms=[transform('RandomFlip', prob=1.0)], prob=0.5),
        transform('Compose', transforms=[transform('RandomCrop', crop_size=(60, 61))]),
    ],
}  # fmt: skip

DET_STEPS = {
    'fixed shape': [transform('FixShapeResize', width=211, height=190, keep_ratio=False)],
    'fixed shape, padded': [transform('FixShapeResize', width=211, height=190, keep_ratio=True)],
    'fixed scale': [transform('FixScaleResize', scale=(211, 190), keep_ratio=True)],
    'pad to a square': [transform('Pad', pad_to_square=True, size_divisor=32)],
    'shift': [transform('RandomShift', prob=0.9, max_shift_px=32)],
    'relative crop': [transform('RandomCrop', crop_size=(0.4, 0.6), crop_type='relative')],
    'crop of a relative range': [
        transform('RandomCrop', crop_size=(0.4, 0.6), crop_type='relative_range')
    ],
    'absolute crop': [transform('RandomCrop', crop_size=(80, 70))],
    'crop of an absolute range': [
        transform('RandomCrop', crop_size=(30, 120), crop_type='absolute_range')
    ],
    'crop around a centre': [
        transform(
            'RandomCenterCropPad', crop_size=(101, 111), ratios=(0.6, 1.0, 1.7), border=128,
            mean=[0, 0, 0], std=[1, 1, 1], to_rgb=True, test_pad_mode=None,
        ),
        transform('Resize', scale=(201, 200)),
    ],
    'odd crop around a centre': [
        transform(
            'RandomCenterCropPad', crop_size=(101, 51), ratios=(1.0,), border=20,
            mean=[0, 0, 0], std=[1, 1, 1], to_rgb=True, test_pad_mode=None,
        ),
    ],
    'GLIP': [transform('RandomFlip_GLIP', prob=0.5)],
    'random order': [
        transform(
            'RandomOrder',
            transforms=[
                transform('RandomFlip', prob=0.7),
                transform('RandomCrop', crop_size=(80, 70)),
                transform('Resize', scale=(120, 130)),
            ],
        )
    ],
}  # fmt: skip

SHIPPED = [
    'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py',
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'mmdet::retinanet/retinanet_r50_fpn_ms-640-800-3x_coco.py',
    'mmdet::centernet/centernet-update_r18_fpn_8xb8-amp-lsj-200e_coco.py',
    'mmdet::ssd/ssd300_coco.py',
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'mmdet::yolo/yolov3_d53_8xb8-ms-416-273e_coco.py',
    'mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py',
    'mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py',
]


@pytest.mark.parametrize('name', SEG_STEPS)
def test_transforms_of_mmseg_are_noted_as_they_are(name):
    for seed in range(6):
        check_against_truth([*SEG_STEPS[name], transform('PackSegInputs')], 'mmseg', seed)


@pytest.mark.parametrize('name', DET_STEPS)
def test_transforms_of_mmdet_are_noted_as_they_are(name):
    found = [
        check_against_truth([*DET_STEPS[name], transform('PackDetInputs')], 'mmdet', seed)
        for seed in range(6)
    ]
    assert any(found)


@pytest.mark.parametrize('path', SHIPPED)
def test_shipped_pipelines_are_noted_as_they_are(path):
    pipeline, scope = shipped(path), path.split('::')[0]
    matrices = [check_against_truth(pipeline, scope, seed).matrix for seed in range(3)]
    assert any((matrix != np.eye(3)).any() for matrix in matrices)


def same(a: Any, b: Any) -> None:
    """Data samples hold the same; of metainfo, that of ``a``."""
    assert a.keys() == b.keys()
    for key in a.metainfo_keys():
        np.testing.assert_equal(a.metainfo[key], b.metainfo[key], err_msg=key)
    for key, value in a.items():
        if hasattr(value, 'metainfo'):
            same(value, b.get(key))
        elif isinstance(value, BitmapMasks):
            np.testing.assert_array_equal(value.masks, b.get(key).masks)
        else:
            tensor = getattr(value, 'tensor', value)
            assert torch.equal(tensor, getattr(b.get(key), 'tensor', b.get(key)))


@pytest.mark.parametrize('path', SHIPPED)
def test_a_recorded_pipeline_gives_what_the_stock_one_gives(path):
    pipeline, scope = shipped(path), path.split('::')[0]
    note = recorded(pipeline, scope)
    assert note != pipeline
    for seed in range(2):
        results = scene_for(pipeline, scope, seed)
        a = run(pipeline, copy.deepcopy(results), scope, seed)
        after = random.random(), np.random.rand()
        b = run(note, results, scope, seed)
        assert (random.random(), np.random.rand()) == after
        assert torch.equal(a['inputs'], b['inputs'])
        assert a['inputs'].is_contiguous() == b['inputs'].is_contiguous()
        same(a['data_samples'], b['data_samples'])
        assert set(b['data_samples'].metainfo) == {*a['data_samples'].metainfo, KEY}


def test_random_numbers_shared_among_runs_stay_shared():
    """Fast R-CNN sends boxes and proposals through the same steps."""
    steps = [
        transform(
            'ProposalBroadcaster',
            transforms=[
                transform('Resize', scale=(133, 120)),
                transform('RandomCrop', crop_size=(90, 80), allow_negative_crop=True),
                transform('RandomFlip', prob=0.5),
            ],
        ),
        transform('PackDetInputs'),
    ]
    for seed in range(4):
        results = scene(seed, 'mmdet')
        results['proposals'] = results['gt_bboxes'].tensor.numpy() + 3
        results['proposals_scores'] = np.ones(3, np.float32)
        a = run(steps, copy.deepcopy(results), 'mmdet', seed)
        b = run(recorded(steps, 'mmdet'), results, 'mmdet', seed)
        assert torch.equal(a['inputs'], b['inputs'])
        same(a['data_samples'], b['data_samples'])
        assert b['data_samples'].metainfo[KEY].packed == (80, 90)


def test_an_image_to_which_nothing_is_done_has_a_geometry():
    results = run(recorded([transform('PackSegInputs')], 'mmseg'), scene(0, 'mmseg'), 'mmseg', 0)
    geometry = results['data_samples'].metainfo[KEY]
    assert (geometry.matrix == np.eye(3)).all()
    assert geometry.packed == geometry.loaded == results['inputs'].shape[1:]


def test_metainfo_asked_for_is_kept():
    step = transform('PackDetInputs', meta_keys=('img_id',))
    results = run(recorded([step], 'mmdet'), scene(0, 'mmdet'), 'mmdet', 0)
    assert set(results['data_samples'].metainfo) == {'img_id', KEY}
    assert step['meta_keys'] == ('img_id',)


def test_pipelines_and_geometries_travel_to_other_processes():
    steps = recorded([*DET_STEPS['crop around a centre'], transform('PackDetInputs')], 'mmdet')
    with DefaultScope.overwrite_default_scope('mmdet'):
        pipeline = pickle.loads(pickle.dumps(Compose(steps)))
    results = pipeline(scene_for(steps, 'mmdet', 0))
    geometry = results['data_samples'].metainfo[KEY]
    there = pickle.loads(pickle.dumps(geometry))
    np.testing.assert_array_equal(there.matrix, geometry.matrix)
    assert (there.loaded, there.packed, there.window) == (
        geometry.loaded,
        geometry.packed,
        geometry.window,
    )


# Batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize('scope', ['mmseg', 'mmdet'])
@pytest.mark.parametrize('resize', [False, True])
def test_batches_of_stock_preprocessors(scope, resize):
    """An image replayed as maps is the network's input: pixel by pixel, and its padding."""
    if scope == 'mmseg':
        preprocessor, pack = SegDataPreProcessor(size_divisor=32, seg_pad_val=255), 'PackSegInputs'
        crop = transform('RandomCrop', crop_size=(83, 95))
    else:
        preprocessor, pack = DetDataPreprocessor(pad_size_divisor=32), 'PackDetInputs'
        crop = transform('RandomCrop', crop_size=(95, 83), allow_negative_crop=True)
    steps = [
        transform('RandomFlip', prob=0.6, direction=['horizontal', 'vertical']),
        crop,
        transform('Pad', size_divisor=12),
        transform(pack),
    ]
    if resize:
        steps.insert(0, transform('RandomResize', scale=(190, 200), ratio_range=(1.0, 2.0)))
    steps = recorded(steps, scope)
    shapes = [(90, 120), (101, 77), (60, 131)]
    scenes = [scene(i, scope, shape) for i, shape in enumerate(shapes)]
    for results in scenes:
        results['img'] = results['img'].astype(np.float32)
    packed = [run(steps, copy.deepcopy(results), scope, i) for i, results in enumerate(scenes)]
    assert len({tuple(sample['inputs'].shape) for sample in packed}) > 1 or resize
    batch = preprocessor(pseudo_collate(packed), training=True)
    canvas = batch['inputs'].shape[-2:]
    for results, inputs, sample in zip(scenes, batch['inputs'], batch['data_samples'], strict=True):
        image = torch.from_numpy(results['img']).permute(2, 0, 1)
        geometry = sample.metainfo[KEY]
        out = replay(image, geometry, canvas, canvas)
        if resize:
            torch.testing.assert_close(out, inputs, atol=0.02, rtol=0)
        else:
            assert torch.equal(out, inputs)
        assert torch.equal(inside(geometry, canvas, canvas), (inputs > 0).all(0))


# What cannot be replayed ----------------------------------------------------------------------


@DET_TRANSFORMS.register_module(name='GeometryTestHalves', force=True)
class Halves:
    """A user's own transform."""

    def __call__(self, results: dict) -> dict:
        results['img'] = results['img'][::2, ::2]
        return results


REFUSALS = [
    (
        [transform('RandomFlip', prob=0.5), transform('Mosaic')],
        r'^pipeline\[1\]: `Mosaic` cannot be replayed on stored maps: it mixes several images\. '
        'Else take it out of the training pipeline, or train with the teacher itself',
    ),
    (
        [
            transform(
                'RandomChoice',
                transforms=[[transform('RandomFlip', prob=0.5)], [transform('RandomAffine')]],
            )
        ],
        r'^pipeline\[0\]\.transforms\[1\]\[0\]: `RandomAffine` cannot be replayed .* it turns',
    ),
    ([transform('AutoAugment')], r'^pipeline\[0\]\.policies\[0\]\[1\]: `ShearY` cannot be'),
    (
        [transform('GeometryTestHalves')],
        r'^pipeline\[0\]: what `GeometryTestHalves` does to an image is not known, .*'
        r"say ignore=\('GeometryTestHalves',\)",
    ),
    ([transform('Albu', transforms=[])], r"`Albu` .* is not known, .* ignore=\('Albu',\)"),
    ([transform('RandomFilp')], 'no transform `RandomFilp` is registered; did you mean `RandomFl'),
    (
        [transform('RandomResize', scale=(8, 8), resize_type='GeometryTestHalves')],
        r'^pipeline\[0\]\.resize_type: `GeometryTestHalves` is not a resize that can be replayed',
    ),
    ([transform('KeyMapper', transforms=[])], 'does not find the image where other transforms do'),
]  # fmt: skip


@pytest.mark.parametrize('pipeline, message', REFUSALS)
def test_what_cannot_be_replayed_is_one_clear_error(pipeline, message):
    with pytest.raises(ValueError, match=message):
        recorded(pipeline, 'mmdet')


def test_transforms_of_users_can_be_declared_harmless():
    steps = [transform('GeometryTestHalves'), transform(Halves)]
    assert recorded(steps, 'mmdet', ignore=('GeometryTestHalves', 'Halves')) == steps
    assert recorded([transform('mmseg.RandomFlip', prob=0.1)], 'mmdet', ignore=('RandomFlip',)) == [
        transform('mmkd_plugin.Recorded', transform=transform('mmseg.RandomFlip', prob=0.1))
    ]


def test_a_transform_wrongly_declared_harmless_is_found_out():
    steps = [
        transform('RandomFlip', prob=0.5),
        transform('GeometryTestHalves'),
        transform('RandomCrop', crop_size=(20, 20), allow_negative_crop=True),
    ]
    message = r'`RandomCrop` got an image of \(50, 50\) .*, not the \(100, 100\)'
    with pytest.raises(ValueError, match=message):
        run(
            recorded(steps, 'mmdet', ignore=['GeometryTestHalves']),
            scene(0, 'mmdet', (100, 100)),
            'mmdet',
            0,
        )


def test_each_stock_transform_is_of_one_kind():
    stock = {**SEG_TRANSFORMS.module_dict, **DET_TRANSFORMS.module_dict}
    stock.update(SEG_TRANSFORMS.parent.module_dict)
    kinds = [set(REPLAYED), set(IGNORED), set(WRAPPERS), set(REFUSED)]
    assert set().union(*kinds) - set(stock) <= {'LoadImageFromNpyFile'}  # of the fork alone
    assert sum(map(len, kinds)) == len(set().union(*kinds))


def test_the_page_says_which_are_which():
    page = Path(__file__).parents[2].joinpath('docs', 'cached_teacher.md').read_text('utf-8')
    rows = [line.split('|')[1:3] for line in page.splitlines() if line.startswith('|')]
    for kinds, verdict in (
        (REPLAYED, 'replayed'),
        (WRAPPERS, 'the transforms inside are'),
        (REFUSED, 'refused'),
    ):
        named = [name for name, what in rows if what.strip().startswith(verdict)]
        missing = {kind for kind in kinds if not any(f'`{kind}`' in name for name in named)}
        assert all(name.startswith(('Pack', 'BioMedical', 'Cached')) for name in missing), missing
    with pytest.raises(ValueError) as raised:
        recorded([transform('GeometryTestHalves')], 'mmdet')
    message = str(raised.value).replace('GeometryTestHalves', 'MyColor').split(': ', 1)[1]
    assert message in page.replace('\n', ' ')


# Configs --------------------------------------------------------------------------------------


def config(dataset: dict, **changes: Any) -> Config:
    return Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=dataset), **changes))


STEPS = [transform('LoadImageFromFile'), transform('RandomFlip', prob=0.5)]


def test_pipelines_inside_wrappers_are_found():
    coco = dict(type='CocoDataset', pipeline=STEPS)
    cfg = config(
        dict(
            type='ConcatDataset',
            datasets=[
                dict(type='RepeatDataset', times=3, dataset=coco),
                dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=copy.deepcopy(coco)),
            ],
        ),
        custom_hooks=[
            dict(type='NumClassCheckHook'),
            dict(type='PipelineSwitchHook', switch_epoch=3, switch_pipeline=STEPS),
        ],
    )
    assert [place for _, _, place in train_pipelines(cfg)] == [
        'train_dataloader.dataset.datasets[0].dataset.pipeline',
        'train_dataloader.dataset.datasets[1].dataset.pipeline',
        'custom_hooks[1].switch_pipeline',
    ]
    record_training(cfg)
    for holder, key, _ in train_pipelines(cfg):
        assert [step['type'] for step in holder[key]] == [
            'LoadImageFromFile',
            'mmkd_plugin.Recorded',
        ]
    again = Config.fromstring(cfg.pretty_text, '.py')  # as a run dumps it
    record_training(again)
    assert again.to_dict() == cfg.to_dict()


def test_data_sets_that_mix_images_are_refused():
    coco = dict(type='CocoDataset', pipeline=STEPS)
    cfg = config(dict(type='MultiImageMixDataset', dataset=coco, pipeline=STEPS))
    with pytest.raises(
        ValueError, match=r'^train_dataloader.dataset: `MultiImageMixDataset` has a pipeline around'
    ):
        record_training(cfg)


@pytest.mark.parametrize('place', ['', 'model.', 'model.student.'])
def test_preprocessors_that_change_batches_are_refused(place):
    augments = [
        dict(type='BatchFixedSizePad', size=(64, 64)),
        dict(type='BatchSyncRandomResize', random_size_range=(480, 800), size_divisor=32),
    ]
    cfg = config(dict(type='CocoDataset', pipeline=STEPS), model=dict(type='X'))
    cfg.merge_from_dict({f'{place}data_preprocessor.batch_augments': augments})
    with pytest.raises(
        ValueError, match=rf'^{place}data_preprocessor.batch_augments: `BatchSyncRandomResize`'
    ):
        record_training(cfg)
    cfg.merge_from_dict({f'{place}data_preprocessor.batch_augments': augments[:1]})
    record_training(cfg)


def test_a_recorded_transform_says_what_it_holds():
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert repr(Recorded(dict(type='CenterCrop', crop_size=8))).startswith(
            'Recorded(CenterCrop('
        )
