"""The settings of images without labels: what is accepted, and how mistakes are answered."""

from __future__ import annotations

import pytest
from mmengine.config import Config

from mmkd_plugin.run_config import check_run
from mmkd_plugin.unlabelled import Unlabelled
from tests.unlabelled.runs import distilled

FOLDER = dict(dataset='data/more')


def test_defaults():
    found = Unlabelled.from_config(FOLDER)
    assert (found.ratio, found.only, found.pseudo) == (1, False, None)
    assert Unlabelled.from_config(None) is None
    pseudo = Unlabelled.from_config(dict(FOLDER, pseudo_labels=0.9)).pseudo
    assert (pseudo.threshold, pseudo.loss_weight, pseudo.teacher) == (0.9, 1, None)


@pytest.mark.parametrize(
    ('ratio', 'batch_size', 'images'), [(1, 2, 2), (0.5, 8, 4), (3, 1, 3), (1 / 3, 6, 2)]
)
def test_images_beside_a_batch(ratio, batch_size, images):
    assert Unlabelled('data/more', ratio).images(batch_size) == images


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ('data/more', r"unlabelled: expected dict\(dataset='data/more'\), got 'data/more'"),
        (['data/more'], r'unlabelled: expected dict\(dataset='),
        (dict(datset='data/more'), r'unlabelled has no key `datset`|`datset`.*`dataset`'),
        (dict(ratio=2), 'unlabelled has no `dataset`: a folder of images'),
        (dict(dataset=5), 'unlabelled has no `dataset`.*got 5'),
        (dict(dataset=dict(data_root='data/more')), 'unlabelled.dataset has no `type`'),
        (dict(FOLDER, ratio=0), 'unlabelled.ratio must be above 0, got 0'),
        (dict(FOLDER, ratio='2'), "unlabelled.ratio must be a number, got '2'"),
        (dict(FOLDER, ratio=0.3), 'unlabelled.ratio=0.3 gives 0.6 images.*take 1/2, say'),
        (dict(FOLDER, only='yes'), "unlabelled.only must be True or False, got 'yes'"),
        (dict(FOLDER, only=True, ratio=1), 'unlabelled.ratio: with only=True'),
        (dict(FOLDER, pseudo_labels=90), 'unlabelled.pseudo_labels must be the least confidence'),
        (dict(FOLDER, pseudo_labels=True), 'unlabelled.pseudo_labels must be.*got True'),
        (dict(FOLDER, pseudo_labels=dict(thr=0.9)), r'unlabelled.pseudo_labels.*`thr`'),
        (
            dict(FOLDER, pseudo_labels=dict(threshold=0.9, loss_weight=0)),
            'unlabelled.pseudo_labels.loss_weight=0 teaches nothing',
        ),
        (
            dict(FOLDER, pseudo_labels=dict(threshold=0.9, loss_weight=-1)),
            'unlabelled.pseudo_labels.loss_weight cannot be negative',
        ),
    ],
)
def test_mistakes_are_found_before_anything_is_built(config, message):
    cfg = dict(
        model=distilled('mmseg', config),
        work_dir='work',
        train_cfg=dict(max_iters=2),
        train_dataloader=dict(batch_size=2, dataset=dict(type='BaseSegDataset')),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
    )
    with pytest.raises(ValueError, match=message):
        check_run(Config(cfg))


def test_it_is_a_key_of_the_model():
    cfg = Config(dict(model=distilled('mmseg', None), unlabelled=FOLDER))
    with pytest.raises(ValueError, match='unlabelled is a key of `model`'):
        check_run(cfg)
