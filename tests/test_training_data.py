"""Training data: what cannot be learned from is found in time, and the message names the file."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, DefaultScope
from torch.utils.data import DataLoader

from mmkd_plugin.cli import build_runner
from mmkd_plugin.training_data import (
    CheckedPipeline,
    CheckTrainingData,
    DataError,
    Expected,
    build_unlabelled,
    check_data,
    warn_of_kept_state,
)
from mmkd_plugin.training_data.classes import check_count, check_same_order
from mmkd_plugin.training_data.evaluators import warn_of_other_file
from mmkd_plugin.training_data.expected import THINGS, too_many_boxes
from mmkd_plugin.training_data.watching import _build, watch_data, watch_test_data
from mmkd_plugin.unlabelled import Unlabelled
from tests import stock_models
from tests.runs import assert_same, config, dataset_of, needs_ops, train, validated
from tests.stock_models import build, cwd, distiller

pytestmark = pytest.mark.usefixtures('own_globals')

THREE = Expected(3, 255, 'decode_head', label_map=True, pixels=True)
TWO = Expected(2, None, 'bbox_head')
ZERO_REDUCED = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]


def pixels(file: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Changes an image on disk."""
    cv2.imwrite(str(file), change(cv2.imread(str(file), cv2.IMREAD_UNCHANGED)))


def cut(file: Path, suffix: str) -> None:
    """Writes half of an image, in the format of a suffix."""
    content = cv2.imencode(suffix, cv2.imread(str(file)))[1].tobytes()
    file.write_bytes(content[: len(content) // 2])


def with_id(number: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(labels: np.ndarray) -> np.ndarray:
        labels[3:6, 3:6] = number
        return labels

    return change


def list_all(folder: Path) -> None:
    """Lists six images in a file, as data sets that come with a split have it."""
    (folder / 'list.txt').write_text(''.join(f'{i}\n' for i in range(6)))


def break_link(folder: Path) -> None:
    (folder / 'images/0.png').unlink()
    (folder / 'images/0.png').symlink_to('nowhere')
    list_all(folder)


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


SEG = {
    'image missing': (lambda d: (d / 'images/3.png').unlink() or list_all(d),
                      'there is no {d}/images/3.png; 1 of 6 images are missing'),
    'image a broken link': (break_link, 'there is no {d}/images/0.png'),
    'image empty': (lambda d: (d / 'images/0.png').write_bytes(b''),
                    'images/0.png: the file is empty'),
    'image cut': (lambda d: (d / 'images/0.png').write_bytes(b'\x89PNG' + bytes(30)),
                  'images/0.png: the file cannot be read as an image'),
    'a PNG ends early': (lambda d: cut(d / 'images/0.png', '.png'),
                         'images/0.png: the file cannot be read as an image'),
    'a JPEG ends early': (lambda d: cut(d / 'images/0.png', '.jpg'),
                          'images/0.png: the file cannot be read as an image'),
    'image is text': (lambda d: (d / 'images/0.png').write_text('<html>'),
                      'images/0.png: the file cannot be read as an image'),
    'label map missing': (lambda d: (d / 'masks/3.png').unlink(),
                          'there is no {d}/masks/3.png; 1 of 6 label maps are missing'),
    'label maps missing': (lambda d: shutil.rmtree(d / 'masks'), '6 of 6 label maps are missing'),
    'label map empty': (lambda d: (d / 'masks/0.png').write_bytes(b''),
                        'masks/0.png: the file is empty'),
    'label map is text': (lambda d: (d / 'masks/0.png').write_text('<html>'),
                          'masks/0.png: the file cannot be read as an image'),
    'label map in colour': (lambda d: pixels(d / 'masks/0.png', lambda x: np.dstack([x] * 3)),
                            'masks/0.png: an array (64, 64, 3) is not a label map'),
    'label map larger': (lambda d: pixels(d / 'masks/0.png', lambda x: np.kron(x, [[1, 1]])),
                         'masks/0.png has 128×64 pixels (width×height), and its image'),
    'label map turned': (lambda d: pixels(d / 'images/0.png', lambda x: x[:40]),
                         'masks/0.png has 64×64 pixels'),
    'id 200': (lambda d: pixels(d / 'masks/0.png', with_id(200)),
               'masks/0.png has the id 200, and `decode_head` knows 0 to 2 (num_classes=3, '
               'and ignore_index=255)'),
    'id of the next class': (lambda d: pixels(d / 'masks/5.png', with_id(3)),
                             'masks/5.png has the id 3, and'),
    '1x1 image': (lambda d: pixels(d / 'images/0.png', lambda x: x[:1, :1]),
                  'images/0.png: an image of 1×1 pixels'),
    'empty folder': (lambda d: empty(d / 'images'),
                     'train_dataloader.dataset has no images: no file in {d}/images ends with '
                     '.png (img_suffix)'),
    'empty list': (lambda d: (d / 'list.txt').touch(),
                   'train_dataloader.dataset has no images: {d}/list.txt lists no image'),
    'missing folder': (lambda d: shutil.rmtree(d / 'images'),
                       'train_dataloader.dataset (BaseSegDataset): there is no {d}/images'),
}  # fmt: skip


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """A copy of the data, to be spoiled."""
    shutil.copytree(data, tmp_path / 'data')
    return tmp_path / 'data'


def loaded(scope: str, folder: Path, **changes: Any) -> Any:
    """The training set of a folder, built as a runner builds it."""
    settings = dict(data_root=str(folder), **{**dataset_of(scope), **changes})
    if (folder / 'list.txt').exists():
        settings['ann_file'] = 'list.txt'
    runner = SimpleNamespace(
        build_dataloader=lambda cfg, **_: SimpleNamespace(dataset=DATASETS.build(cfg['dataset'])),
        seed=0,
        _randomness_cfg={},
    )
    with DefaultScope.overwrite_default_scope(scope):
        return _build(runner, dict(dataset=settings), 'train').dataset


@pytest.mark.parametrize(('spoil', 'message'), SEG.values(), ids=list(SEG))
def test_a_bad_segmentation_set_is_refused_by_the_name_of_the_file(spoil, message, folder):
    spoil(folder)
    with pytest.raises(DataError) as caught:
        check_data(loaded('mmseg', folder), THREE)
    assert message.format(d=folder) in str(caught.value)
    assert '\n' not in str(caught.value)


def boxes(change: Callable[[dict], Any]) -> Callable[[Path], None]:
    """Changes the annotations of a detection set."""

    def spoil(folder: Path) -> None:
        file = folder / 'boxes.json'
        coco = json.loads(file.read_text())
        change(coco)
        file.write_text(json.dumps(coco))

    return spoil


def own_format(box: list[float], label: int) -> Callable[[Path], None]:
    """Annotations in OpenMMLab's own format, which no data set filters."""

    def spoil(folder: Path) -> None:
        instances = [dict(bbox=box, bbox_label=label, ignore_flag=0)]
        image = dict(img_path='0.png', img_id=0, height=64, width=64, instances=instances)
        meta = dict(classes=['box', 'disc'])
        (folder / 'own.json').write_text(json.dumps(dict(metainfo=meta, data_list=[image])))

    return spoil


DET = {
    'image missing': (lambda d: (d / 'images/4.png').unlink(),
                      'there is no {d}/images/4.png; 1 of 6 images are missing'),
    'image empty': (lambda d: (d / 'images/0.png').write_bytes(b''),
                    'images/0.png: the file is empty'),
    '1x1 image': (lambda d: pixels(d / 'images/0.png', lambda x: x[:1, :1]),
                  'images/0.png: an image of 1×1 pixels'),
    'other names of classes': (boxes(lambda c: [k.update(name='x') for k in c['categories']]),
                               'none of its 6 images has a box of a class that is trained'),
    'no boxes': (boxes(lambda c: c['annotations'].clear()), 'none of its 6 images has a box'),
    'no images': (boxes(lambda c: c.update(images=[], annotations=[])),
                  'train_dataloader.dataset has no images: {d}/boxes.json lists no image'),
    'no annotation file': (lambda d: (d / 'boxes.json').unlink(),
                           'train_dataloader.dataset (CocoDataset): there is no {d}/boxes.json'),
    'annotation file cut': (lambda d: (d / 'boxes.json').write_text('{{'),
                            'train_dataloader.dataset (CocoDataset) cannot be built: '
                            'JSONDecodeError'),
    'no COCO': (lambda d: (d / 'boxes.json').write_text('[]'),
                'cannot be built: AssertionError: annotation file format <class \'list\'> not '
                'supported (of {d}/boxes.json)'),
    'nothing in it': (lambda d: (d / 'boxes.json').write_text('{}'), '(of {d}/boxes.json)'),
    'one name of a class': (boxes(lambda c: c['categories'][0].update(name='bax')),
                            "metainfo.classes names 'box', and {d}/boxes.json has the "
                            'categories bax, disc; did you mean `bax`?'),
    'another order': (boxes(lambda c: c['categories'].reverse()),
                      'metainfo.classes is in another order than the labels that CocoDataset gives '
                      "the categories of {d}/boxes.json: write ('disc', 'box')"),
    'another size': (boxes(lambda c: c['images'][0].update(width=640, height=480)),
                     'images/0.png has 64×64 pixels (width×height), and its annotations say '
                     '640×480'),
    'a key is missing': (boxes(lambda c: c['images'][0].pop('height')),
                         "cannot be built: KeyError: 'height'"),
    'box without area': (own_format([5, 5, 5, 9], 0),
                         'images/0.png: the box [5, 5, 5, 9] (x1, y1, x2, y2) has no area'),
    'box outside': (own_format([70, 5, 80, 9], 0),
                    'the box [70, 5, 80, 9] (x1, y1, x2, y2) lies outside the image of 64×64'),
    'label beyond': (own_format([5, 5, 9, 9], 2),
                     'images/0.png: a box has the label 2, and `bbox_head` knows 0 to 1 '
                     '(num_classes=2)'),
    'label below': (own_format([5, 5, 9, 9], -1), 'images/0.png: a box has the label -1'),
}  # fmt: skip


@pytest.mark.parametrize(('spoil', 'message'), DET.values(), ids=list(DET))
def test_a_bad_detection_set_is_refused_by_the_name_of_the_file(spoil, message, folder):
    spoil(folder)
    changes = {}
    if (folder / 'own.json').exists():
        prefix = dict(img_path='images/')
        changes = dict(type='BaseDetDataset', ann_file='own.json', data_prefix=prefix)
    with pytest.raises(DataError) as caught:
        check_data(loaded('mmdet', folder, **changes), TWO)
    assert message.format(d=folder) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_of_more_categories_some_may_be_trained(folder):
    more = [dict(id=5, name='bat'), dict(id=6, name='cat')]
    boxes(lambda c: c.update(categories=[more[0], *c['categories'], more[1]]))(folder)
    check_data(loaded('mmdet', folder), TWO)
    check_data(loaded('mmdet', folder, metainfo=dict(classes=('disc',))), Expected(1))
    with pytest.raises(DataError, match=r"write \('box', 'disc'\)$"):
        check_data(loaded('mmdet', folder, metainfo=dict(classes=('disc', 'box'))), TWO)


def test_a_data_set_that_sorts_the_categories_of_its_file(folder):
    boxes(lambda c: c['categories'].reverse())(folder)
    check_data(loaded('mmdet', folder, type='Objects365V1Dataset'), TWO)
    wrong = dict(type='Objects365V1Dataset', metainfo=dict(classes=('disc', 'box')))
    with pytest.raises(DataError, match=r"Objects365V1Dataset gives .* write \('box', 'disc'\)"):
        check_data(loaded('mmdet', folder, **wrong), TWO)


def test_validation_data_in_another_order(folder):
    there = loaded('mmdet', folder)
    boxes(lambda c: c['categories'].reverse())(folder)
    with pytest.raises(DataError, match=r'^val_dataloader\.dataset\..*or sort the categories'):
        check_data(loaded('mmdet', folder), Expected(), 1, 'val')
    other = loaded('mmdet', folder, metainfo=dict(classes=('disc', 'box')))
    check_data(other, Expected(), 1, 'val')
    with pytest.raises(DataError) as caught:  # either may be the wrong one
        check_same_order(there, other)
    message = str(caught.value)
    assert message.startswith('train_dataloader.dataset.metainfo.classes and val_dataloader.dat')
    assert "from number 0 on: ('box', 'disc') and ('disc', 'box'). The model" in message
    check_same_order(there, there)
    check_same_order(there, loaded('mmdet', folder, metainfo=dict(classes=('disc',))))


@pytest.mark.parametrize('scope', ['mmseg', 'mmdet'])
@pytest.mark.parametrize(
    ('names', 'message'),
    [
        ('box', "='box' is a string, each letter of which would be a class: write ('box',)"),
        ('box, disc', "='box, disc' is a string, .* write ('box', 'disc')"),
        ('data/names.txt', "='data/names.txt' is a string, and there is no file of this name"),
    ],
)
def test_a_text_in_place_of_names(scope, names, message, data):
    palette = [[0, 0, 0]] * len(names)
    with pytest.raises(DataError) as caught:
        loaded(scope, data, metainfo=dict(classes=names, palette=palette))
    start, _, end = f'train_dataloader.dataset.metainfo.classes{message}'.partition('.*')
    assert str(caught.value).startswith(start) and end in str(caught.value)


def test_a_file_of_names_in_their_place(data, tmp_path):
    (tmp_path / 'names.txt').write_text('box\ndisc\n')
    dataset = loaded('mmdet', data, metainfo=dict(classes=str(tmp_path / 'names.txt')))
    assert dataset.metainfo['classes'] == ['box', 'disc']
    check_data(dataset, TWO)


def with_other_names(coco: dict) -> None:
    for image in coco['images']:
        image['file_name'] = f'train/9{image["file_name"]}'


def without_an_image(coco: dict) -> None:
    number = coco['images'].pop()['id']
    coco['annotations'] = [one for one in coco['annotations'] if one['image_id'] != number]


OTHER = 'ann_file=other.json is another file than that of val_dataloader.dataset, {d}/boxes.json'


@pytest.mark.parametrize(
    ('change', 'evaluator', 'message'),
    [
        (with_other_names, dict(ann_file='other.json'), f'val_evaluator.{OTHER}, and lists other'),
        (without_an_image, dict(ann_file='other.json'), f'val_evaluator.{OTHER}, and lists other'),
        (with_other_names, [dict(type='A'), dict(ann_file='other.json')], 'val_evaluator[1].ann_'),
        (with_other_names, dict(metrics=[dict(ann_file='other.json')]), 'val_evaluator.metrics[0]'),
        (lambda coco: coco.clear(), dict(ann_file='other.json'), None),
        (lambda coco: coco['annotations'].pop(), dict(ann_file='other.json'), None),
        (lambda coco: [i.pop('file_name') for i in coco['images']], dict(ann_file='other.json'),
         None),
        (with_other_names, dict(ann_file='images/../boxes.json'), None),
        (with_other_names, dict(ann_file='link.json'), None),
        (with_other_names, dict(ann_file='s3://bucket/other.json'), None),
        (with_other_names, dict(ann_file=None), None),
        (with_other_names, None, None),
    ],
)  # fmt: skip
def test_an_evaluator_with_the_file_of_other_images(
    change, evaluator, message, folder, log, monkeypatch
):
    monkeypatch.chdir(folder)
    part = dict(data_root=str(folder), **dataset_of('mmdet'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(dict(type='RepeatDataset', times=2, dataset=part))
    coco = json.loads(Path('boxes.json').read_text())
    change(coco)
    Path('other.json').write_text(json.dumps(coco))
    Path('link.json').symlink_to('boxes.json')
    warn_of_other_file(evaluator, dataset, 'val')
    assert len(log.warnings) == (message is not None)
    assert message is None or message.format(d=folder) in log.warnings[0]


@pytest.mark.parametrize(
    ('scope', 'expected', 'message'),
    [
        ('mmseg', THREE, None),
        ('mmseg', replace(THREE, classes=2), None),  # the labels say whether that is too few
        ('mmseg', replace(THREE, classes=19),
         'decode_head.num_classes=19, and the data set names 3 classes: no measure counts the '
         'other 16. Write num_classes=3, or name them in metainfo.classes, unless'),
        ('mmdet', TWO, None),
        ('mmdet', Expected(), None),
        ('mmdet', Expected(5, None, 'panoptic_head', stuff=3), None),
        ('mmdet', Expected(80, None, 'roi_head.bbox_head'),
         'roi_head.bbox_head.num_classes=80, and the data set names 2 classes; write num_classes='),
        ('mmdet', Expected(8, None, 'panoptic_head', stuff=3, key=THINGS),
         'panoptic_head.num_things_classes=5, and the data set names 2 classes; write num_things_'),
    ],
)  # fmt: skip
def test_more_classes_than_the_data_set_names(scope, expected, message, data, log):
    with DefaultScope.overwrite_default_scope(scope):
        part = dict(data_root=str(data), **dataset_of(scope))
        dataset = DATASETS.build(dict(type='RepeatDataset', times=2, dataset=part))
    if message and not expected.pixels:
        with pytest.raises(DataError, match=message):
            check_count(dataset, expected)
        return
    check_count(dataset, expected)
    assert len(log.warnings) == (message is not None)
    assert message is None or log.warnings[0].startswith(message)


def test_one_score_for_a_class_with_a_name(data, log):
    dataset = loaded('mmseg', data, metainfo=dict(classes=['box'], palette=[[0, 0, 0]]))
    check_count(dataset, replace(THREE, classes=2))
    assert not log.warnings


@pytest.mark.parametrize(
    ('scope', 'changes', 'message'),
    [
        ('mmseg', dict(data_prefix=dict(img_path='images')), 'it has no label map; the data set'),
        ('mmseg', dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]),
         "it has no label map; the train pipeline needs a dict(type='LoadAnnotations')"),
        ('mmseg', dict(reduce_zero_label=True), None),
        ('mmseg', dict(pipeline=ZERO_REDUCED),
         'masks/0.png: dataset.reduce_zero_label=False, and LoadAnnotations of its pipeline has '
         'reduce_zero_label=True; leave it out of LoadAnnotations'),
        ('mmseg', dict(pipeline=ZERO_REDUCED, reduce_zero_label=True), None),
        ('mmseg', dict(img_suffix='.jpg'), 'ends with .jpg (img_suffix)'),
        ('mmdet', dict(filter_cfg=dict(min_size=100)), 'lists no image that is left after filter'),
        ('mmseg', {}, None),
        ('mmdet', {}, None),
    ],
)  # fmt: skip
def test_settings_of_the_data_set(scope, changes, message, data):
    expected = THREE if scope == 'mmseg' else TWO
    if message is None:
        check_data(loaded(scope, data, **changes), expected)
        return
    with pytest.raises(DataError) as caught:
        check_data(loaded(scope, data, **changes), expected)
    assert message in str(caught.value)


@pytest.mark.parametrize('scope', ['mmseg', 'mmdet'])
@pytest.mark.parametrize(
    ('transform', 'message'),
    [
        (dict(type='RandomFlip'), ': RandomFlip: ValueError: probs must be float or list of float'),
        (dict(type='RandomApply', transforms=[dict(type='RandomFlip')]),
         '.transforms[0]: RandomFlip: ValueError: probs must be float'),
        (dict(type='Resize'), ': Resize: AssertionError: `scale` and`scale_factor` can not both'),
        (dict(type='RandomFlop', prob=0.5), ".type: there is no 'RandomFlop'; did you mean"),
        (dict(type='RandomFlip', prop=0.5), ': RandomFlip has no argument `prop`; did you mean'),
    ],
)  # fmt: skip
def test_a_transform_that_cannot_be_built_is_named(scope, transform, message, data):
    pipeline = dataset_of(scope)['pipeline']
    pipeline.insert(2, transform)
    with pytest.raises(ValueError, match=r'^train_dataloader\.dataset\.pipeline\[2\]') as caught:
        loaded(scope, data, pipeline=pipeline)
    assert message in str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_class_that_another_library_has_too_is_named(data):
    changes = {**dataset_of('mmseg'), 'reduce_zero_label': True}
    with pytest.raises(ValueError, match=r'^train_dataloader\.dataset: BaseSegDataset') as caught:
        loaded('mmdet', data, **changes)
    assert 'has no argument `reduce_zero_label`; that of mmseg has it: write ' in str(caught.value)
    assert "default_scope='mmseg' at" in str(caught.value)
    assert str(caught.value).endswith("or type='mmseg.BaseSegDataset' here")
    del changes['reduce_zero_label']
    with pytest.raises(ValueError, match=r'has no argument `img_sufix`; did you mean `') as caught:
        loaded('mmseg', data, **changes, img_sufix='.png')
    assert 'that of' not in str(caught.value)


def with_outlines(coco: dict) -> None:
    for one in coco['annotations']:
        x, y, width, height = one['bbox']
        one['segmentation'] = [[x, y, x + width, y, x + width, y + height, x, y + height]]


@pytest.mark.parametrize('with_mask', [False, True])
def test_masks_that_are_not_loaded(with_mask, folder):
    boxes(with_outlines)(folder)
    pipeline = dataset_of('mmdet')['pipeline']
    pipeline[1] = dict(type='LoadAnnotations', with_bbox=True, with_mask=with_mask)
    dataset = loaded('mmdet', folder, pipeline=pipeline)
    model = build(stock_models.mask_rcnn(classes=2))
    check_data(dataset, TWO)
    if with_mask:
        check_data(dataset, Expected.by(model))
        return
    with pytest.raises(DataError, match=r'images/0\.png: its boxes have no masks.* with_mask=True'):
        check_data(dataset, Expected.by(model))
    model.roi_head.mask_head = type('OfOurs', (torch.nn.ReLU,), {})()  # may learn from boxes alone
    check_data(dataset, Expected.by(model))


def test_classes_that_a_data_set_lacks_are_named(data):
    changes = dict(type='PascalVOCDataset', ann_file='', metainfo=dict(classes=['box']))
    with pytest.raises(DataError, match=r'cannot be built: ValueError: new classes .*box'):
        loaded('mmseg', data, **changes)


def test_a_label_map_beside_boxes_has_classes_of_its_own(folder):
    pixels(folder / 'masks/0.png', with_id(182))  # COCO's stuff, for HTC and Panoptic FPN
    pipeline = dataset_of('mmdet')['pipeline']
    pipeline[1] = dict(type='LoadAnnotations', with_bbox=True, with_seg=True)
    changes = dict(pipeline=pipeline, data_prefix=dict(img='images/', seg='masks/'))
    dataset = loaded('mmdet', folder, **changes)
    dataset.seg_map_suffix = '.png'
    assert 182 in dataset[0]['data_samples'].gt_sem_seg.sem_seg
    check_data(dataset, TWO)
    (folder / 'masks/0.png').write_bytes(b'')
    with pytest.raises(DataError, match=r'masks/0\.png'):
        check_data(dataset, TWO)


def test_wrappers_are_looked_into(folder):
    (folder / 'masks/5.png').write_bytes(b'')
    part = dict(data_root=str(folder), **dataset_of('mmseg'))
    wrapper = dict(type='RepeatDataset', times=3, dataset=part)
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(dict(type='ConcatDataset', datasets=[wrapper, wrapper]))
    with pytest.raises(DataError, match=r'masks/5\.png: the file is empty'):
        check_data(dataset, THREE)


def test_the_check_takes_no_random_numbers_and_leaves_the_transforms_alone(data):
    pipeline = dataset_of('mmdet')['pipeline']
    pipeline[2:2] = [
        dict(type='CachedMosaic', img_scale=(64, 64)),
        dict(type='RandomFlip', prob=0.5),
    ]
    dataset = loaded('mmdet', data, pipeline=pipeline)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    check_data(dataset, TWO)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert_same(after, before)
    assert dataset.pipeline.transforms[2].results_cache == []


def test_a_resumed_run_says_which_transforms_have_forgotten_images(data, log):
    mixing = dict(type='CachedMixUp', img_scale=(64, 64))
    plain, cached, at_times = (
        loaded('mmdet', data, pipeline=[*dataset_of('mmdet')['pipeline'], *more])
        for more in ([], [mixing], [dict(type='RandomApply', transforms=[mixing])])
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        repeated = DATASETS.build(dict(type='RepeatDataset', times=2, dataset=cached))
    for known in (plain, cached, repeated):  # whose images are loaded again
        warn_of_kept_state(known)
    assert not log.warnings
    warn_of_kept_state(at_times)
    (warning,) = log.warnings
    assert warning.startswith('--resume: CachedMixUp of the pipeline kept images')


def test_what_a_model_knows_is_read_from_its_head():
    segmentor, detector = stock_models.pspnet(), stock_models.faster_rcnn()
    assert Expected.by(build(segmentor)) == Expected(5, 255, 'decode_head', True, True)
    assert Expected.by(build(detector)) == Expected(4, None, 'roi_head.bbox_head', False)
    masks = build(stock_models.mask2former(classes=4, stuff=2))
    found = Expected(6, None, 'panoptic_head', stuff=2, key=THINGS, masks='panoptic_head')
    assert Expected.by(masks) == found
    for one in (stock_models.mask_rcnn(), stock_models.cascade_rcnn(masks=True)):
        assert Expected.by(build(one)).masks == 'roi_head.mask_head'
    assert not Expected.by(build(stock_models.cascade_rcnn())).masks
    assert Expected.by(torch.nn.ReLU()) == Expected()
    of_words = build(detector)
    of_words.language_model = (
        torch.nn.Identity()
    )  # GLIP, Grounding DINO: each image has its classes
    assert Expected.by(of_words) == Expected()
    terms = dict(cwd=dict(tap='decode_head.conv_seg', loss=cwd()))
    model = distiller(segmentor, stock_models.pspnet(16), terms)
    assert Expected.by(model) == Expected(5, 255, 'decode_head', True, True)
    model.task_weight = 0.0  # images without labels will do
    assert not Expected.by(model).label_map
    head = model.student.decode_head
    head.out_channels, head.num_classes = 1, 1
    assert Expected.by(model).classes == 2


def test_a_custom_transform_may_change_the_ids_first(folder):
    pixels(folder / 'masks/0.png', with_id(200))

    def remap(results: dict) -> dict:
        results['gt_seg_map'][results['gt_seg_map'] == 200] = 255
        return results

    dataset = loaded('mmseg', folder)
    dataset.pipeline.transforms.insert(2, remap)
    check_data(dataset, THREE)


# In training --------------------------------------------------------------------------------------


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda d: (d / 'masks/2.png').write_bytes(b''), 'masks/2.png: the file is empty'),
        (lambda d: pixels(d / 'masks/2.png', with_id(9)), 'masks/2.png has the id 9, and'),
    ],
)
def test_a_later_image_is_named_too(spoil, message, workers, folder):
    dataset = loaded('mmseg', folder)
    dataset.pipeline = CheckedPipeline(dataset.pipeline.transforms, THREE)
    spoil(folder)
    loader = DataLoader(dataset, num_workers=workers, collate_fn=list)
    with pytest.raises(DataError) as caught:
        list(loader)
    assert str(caught.value).startswith(str(folder)) and message in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('classes', [2, 3])
def test_a_detector_with_more_classes_than_names_does_not_train(classes, data, tmp_path):
    hooks = [dict(type='mmkd_plugin.CheckTrainingData')]
    model = stock_models.retinanet(classes=classes)
    cfg = validated(config(model, data, tmp_path / 'run', 1, custom_hooks=hooks), data)
    if classes == 2:
        train(cfg)
    else:
        with pytest.raises(DataError, match=r'^bbox_head\.num_classes=3, .*write num_classes=2$'):
            train(cfg)


@needs_ops
def test_a_run_says_that_its_evaluators_have_other_images(folder, tmp_path):
    shutil.copy(folder / 'boxes.json', tmp_path / 'other.json')
    boxes(with_other_names)(folder)
    cfg = validated(config(stock_models.retinanet(classes=2), folder, tmp_path / 'run', 1), folder)
    cfg.val_evaluator.ann_file = str(tmp_path / 'other.json')
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, [cfg.val_evaluator]
    cfg.test_cfg = dict(type='TestLoop')
    runner = build_runner(cfg)
    watch_data(runner)
    watch_test_data(runner)
    (file,) = tmp_path.glob('run/*/*.log')
    for place in ('val_evaluator', 'test_evaluator[0]'):
        assert file.read_text().count(f'WARNING - {place}.ann_file={tmp_path}/other.json is') == 1


@pytest.mark.parametrize(
    ('make', 'most', 'text'),
    [
        ('dino', 12, 'num_queries=6 * num_classes=2 gives'),
        ('detr', 6, 'num_queries=6 gives'),
    ],
)
def test_no_more_boxes_are_kept_than_queries_answer(make, most, text):
    model = build(getattr(stock_models, make)(classes=2))
    for kept, wrong in ((most, False), (most + 1, True)):
        model.bbox_head.test_cfg = dict(max_per_img=kept)
        said = too_many_boxes(model) or ''
        assert bool(said) is wrong
        assert not wrong or (text in said and said.endswith(f'write max_per_img={most}'))


def test_a_detector_that_keeps_more_boxes_than_it_has_does_not_train(data, tmp_path):
    hooks = [dict(type='mmkd_plugin.CheckTrainingData')]
    model = dict(stock_models.detr(classes=2), test_cfg=dict(max_per_img=100))
    cfg = validated(config(model, data, tmp_path / 'run', 1, custom_hooks=hooks), data)
    with pytest.raises(DataError, match=r'^test_cfg\.max_per_img=100 is more than num_queries=6 '):
        train(cfg)


def test_the_hook_checks_in_a_run_of_the_stock_tools(folder, tmp_path):
    pixels(folder / 'masks/0.png', with_id(200))
    hooks = [dict(type='mmkd_plugin.CheckTrainingData')]
    model = stock_models.pspnet(classes=3)
    with pytest.raises(DataError, match=r'masks/0\.png has the id 200'):
        train(config(model, folder, tmp_path / 'run', 1, custom_hooks=hooks))


@pytest.mark.parametrize('samples', [0, 1.5, True, 'a'])
def test_the_hook_refuses_a_number_of_samples(samples):
    with pytest.raises(ValueError, match='samples: expected a whole number above 0'):
        CheckTrainingData(samples)


@pytest.mark.parametrize(
    ('file', 'message'),
    [
        (None, 'unlabelled.dataset has no images: no file in '),
        ('list.txt', r'unlabelled.dataset \(ImageFolder\): there is no .*list.txt'),
    ],
)
def test_a_folder_without_images_is_named(file, message, tmp_path):
    config = dict(type='mmkd_plugin.ImageFolder', data_root=str(tmp_path), pipeline=[])
    config |= {} if file is None else dict(ann_file=file)
    with pytest.raises(DataError, match=message):
        build_unlabelled(Unlabelled(config))


def test_an_image_without_labels_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / 'bad.png').write_text('no image')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    config = dict(type='mmkd_plugin.ImageFolder', data_root=str(tmp_path), pipeline=pipeline)
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = build_unlabelled(Unlabelled(config))
        with pytest.raises(DataError, match=r'bad\.png: the file cannot be read as an image'):
            check_data(dataset, THREE.without_labels(), key='unlabelled')
