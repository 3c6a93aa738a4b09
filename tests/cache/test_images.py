"""Names of images, how pipelines load them, and their scale."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmkd_plugin.cache.images import common_root, image_name, loading_part, plain, training_scale

LOAD = dict(type='LoadImageFromFile', color_type='color', backend_args=dict(backend='s3'))


@pytest.mark.parametrize('prefix', ['', 'mmdet.'])
@pytest.mark.parametrize(
    ('resize', 'fixed'),
    [
        (
            dict(type='Resize', scale=(1333, 800), keep_ratio=True),
            dict(type='Resize', scale=(1333, 800), keep_ratio=True),
        ),
        (
            dict(type='RandomResize', scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type='Resize', scale=(2048, 1024), keep_ratio=True),
        ),
        (
            dict(type='RandomResize', scale=[(1333, 640), (1333, 800)], keep_ratio=True),
            dict(type='Resize', scale=(1333, 720), keep_ratio=True),
        ),
        (
            dict(
                type='RandomChoiceResize',
                scales=[(1333, 800), (1333, 640), (1333, 672)],
                keep_ratio=True,
            ),
            dict(type='Resize', scale=(1333, 672), keep_ratio=True),
        ),
        (
            dict(
                type='RandomChoiceResize',
                scales=[256, 512, 1024],
                resize_type='ResizeShortestEdge',
                max_size=2048,
            ),
            dict(type='ResizeShortestEdge', scale=512, max_size=2048),
        ),
    ],
)
def test_the_scale_of_a_pipeline(resize, fixed, prefix):
    resize, fixed = (dict(one, type=prefix + one['type']) for one in (resize, fixed))
    assert training_scale([LOAD, resize, dict(type='RandomFlip', prob=0.5)]) == fixed
    nested = dict(type='RandomChoice', transforms=[[resize], [dict(type='RandomFlip'), resize]])
    assert training_scale([LOAD, nested]) == fixed


def test_no_scale_and_too_many():
    assert training_scale([LOAD, dict(type='PackSegInputs')]) is None
    two = [dict(type='Resize', scale=(64, 64)), dict(type='Resize', scale=(32, 32))]
    with pytest.raises(ValueError, match=r'\(Resize, Resize\) does not say one scale; give it'):
        training_scale([LOAD, *two])
    with pytest.raises(ValueError, match='does not say one scale'):
        training_scale([LOAD, dict(type='MyResize', scale=(64, 64))])


def test_what_loads_an_image():
    other = dict(LOAD, backend_args=None)
    labels = dict(type='LoadAnnotations')
    flip = dict(type='RandomFlip', prob=0.5)
    assert loading_part([LOAD, labels, flip]) == [LOAD]
    assert loading_part([labels, LOAD, flip]) == [LOAD]
    assert plain(LOAD) != plain(dict(LOAD, color_type='grayscale'))
    changed = {key: value for key, value in other.items() if key != 'backend_args'}
    assert plain(LOAD) == plain(other) == plain(changed)  # the place of the files does not matter
    assert plain(dict(LOAD, type='mmdet.LoadImageFromFile')) == plain(LOAD)
    with pytest.raises(ValueError, match='no transform that loads an image'):
        loading_part([flip])


def test_names_are_the_same_everywhere(tmp_path):
    assert image_name(dict(img_path='data/x/img/1.png'), 'data/x/') == 'img/1.png'
    assert image_name(dict(img_path='data/x//img/1.png'), 'data/x') == 'img/1.png'
    assert image_name(dict(img_path=str(tmp_path / 'img/1.png')), str(tmp_path)) == 'img/1.png'
    assert image_name(dict(img_path='s3://bucket/x/1.png'), 's3://bucket/') == 'x/1.png'
    assert image_name(dict(img_path='img/1.png'), '') == 'img/1.png'
    assert image_name(dict(img_id=7), 'data') == 'id:7'


def test_the_root_of_several_data_sets(tmp_path, monkeypatch):
    def root(*roots: str) -> str:
        return common_root([dict(data_root=root) for root in roots])

    monkeypatch.chdir(tmp_path)
    assert root('data/x/') == 'data/x/'
    assert root('data/voc/2007/', 'data/voc/2012/') == 'data/voc'
    assert root('data/x', 'data/x') == 'data/x'
    assert root('data/x', '') == ''
    assert root('data/x', str(tmp_path / 'data/y')) == str(Path(tmp_path, 'data'))
