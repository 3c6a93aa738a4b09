"""The train pipeline of labelled images, without labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from mmkd_plugin.cache.recording import not_followed
from mmkd_plugin.unlabelled.pipelines import complete, without_labels
from tests.unlabelled.runs import distilled

LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='PackDetInputs')
BOXES = dict(type='LoadAnnotations', with_bbox=True)


def test_what_looks_at_labels_is_changed_and_nothing_else():
    flip = dict(type='RandomFlip', prob=0.5)
    crop = dict(type='RandomCrop', crop_size=(8, 8))
    choice = dict(type='RandomChoice', transforms=[[flip], [crop]])
    steps = [LOAD, BOXES, dict(type='FilterAnnotations'), crop, choice, PACK]
    made = without_labels(steps, 'mmdet')
    freed = dict(crop, allow_negative_crop=True)
    assert made == [
        LOAD,
        dict(type='mmkd_plugin.WithoutLabels', load=BOXES, ignore_index=255),
        freed,
        dict(choice, transforms=[[flip], [freed]]),
        PACK,
    ]
    assert without_labels(made, 'mmdet') == made
    assert steps[3] == crop  # what was given stays
    assert not_followed(made[:2]) == []  # it changes no pixel
    crop = dict(type='RandomCrop', crop_size=(8, 8), cat_max_ratio=0.75)
    assert without_labels([crop], 'mmseg') == [dict(crop, cat_max_ratio=1.0)]


def completed(scope: str, labelled: dict, **unlabelled) -> Config:
    cfg = Config(
        dict(
            default_scope=scope,
            model=distilled(scope, unlabelled),
            train_dataloader=dict(dataset=labelled),
        )
    )
    complete(cfg)
    before = cfg.to_dict()
    complete(cfg)  # as from the config that a run has saved
    assert cfg.to_dict() == before
    return cfg


def kinds(dataset: dict) -> list[str]:
    return [step['type'].rpartition('.')[2] for step in dataset['pipeline']]


COCO = dict(type='CocoDataset', data_root='data/coco', pipeline=[LOAD, BOXES, PACK])
BARE = ['LoadImageFromFile', 'WithoutLabels', 'PackDetInputs']


def test_a_folder_gets_the_pipeline_and_the_classes_of_the_training_set(tmp_path: Path):
    cfg = completed('mmdet', dict(type='RepeatDataset', dataset=COCO), dataset=str(tmp_path))
    found = cfg.model.unlabelled.dataset
    assert (found.type, found.data_root) == ('mmkd_plugin.ImageFolder', str(tmp_path))
    assert kinds(found) == BARE and len(found.metainfo.classes) == 80
    assert kinds(cfg.train_dataloader.dataset.dataset) == [
        'LoadImageFromFile',
        'LoadAnnotations',
        'PackDetInputs',
    ]


def test_a_wrapper_that_mixes_images_mixes_these_too(tmp_path: Path):
    mosaic = [dict(type='Mosaic', img_scale=(8, 8)), dict(type='FilterAnnotations'), PACK]
    inner = dict(COCO, pipeline=[LOAD, BOXES])
    labelled = dict(type='MultiImageMixDataset', dataset=inner, pipeline=mosaic)
    found = completed('mmdet', labelled, dataset=str(tmp_path)).model.unlabelled.dataset
    assert found.type == 'MultiImageMixDataset' and kinds(found) == ['Mosaic', 'PackDetInputs']
    assert kinds(found.dataset) == BARE[:2]


def test_the_dict_of_a_data_set_may_have_a_pipeline_of_its_own():
    own = dict(COCO, data_root='data/more', pipeline=[LOAD, BOXES, dict(type='Pad'), PACK])
    both = dict(type='ConcatDataset', datasets=[own, dict(own, pipeline=[LOAD, PACK])])
    found = completed('mmdet', COCO, dataset=both).model.unlabelled.dataset
    assert kinds(found.datasets[0]) == [*BARE[:2], 'Pad', 'PackDetInputs']
    assert kinds(found.datasets[1]) == ['LoadImageFromFile', 'PackDetInputs']


def test_pixels_are_ignored_as_the_student_ignores_them(tmp_path: Path):
    pipeline = [LOAD, dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
    cfg = Config(
        dict(
            default_scope='mmseg',
            model=distilled('mmseg', dict(dataset=str(tmp_path), only=True)),
            train_dataloader=dict(dataset=dict(type='BaseSegDataset', pipeline=pipeline)),
        )
    )
    cfg.model.student.decode_head.ignore_index = 7
    complete(cfg)
    assert cfg.train_dataloader.dataset.type == 'mmkd_plugin.ImageFolder'  # only these
    assert cfg.train_dataloader.collate_fn == dict(type='mmkd_plugin.collate_without_labels')
    assert cfg.train_dataloader.dataset.pipeline[1].ignore_index == 7


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=f'unlabelled.dataset: there is no folder {tmp_path}/no'):
        completed('mmdet', COCO, dataset=f'{tmp_path}/no')
    (tmp_path / 'more').mkdir()
    with pytest.raises(ValueError, match=f'no folder {tmp_path}/mor; in {tmp_path} there is more$'):
        completed('mmdet', COCO, dataset=f'{tmp_path}/mor')
    (tmp_path / 'a.jpg').touch()
    with pytest.raises(ValueError, match=r'a\.jpg; it is a file, and a folder is needed$'):
        completed('mmdet', COCO, dataset=f'{tmp_path}/a.jpg')
