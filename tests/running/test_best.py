"""The best checkpoint by a score that validation spells otherwise, or does not give."""

from __future__ import annotations

import logging

import pytest
from mmengine.logging import MMLogger

from mmkd_plugin.running.best import spelt_otherwise
from tests.running.tiny import tiny_run

pytestmark = pytest.mark.usefixtures('own_globals')


@pytest.mark.parametrize(
    ('asked', 'kept', 'said'),
    [
        ('Score', ['best_Score_iter_6.pth'], "'Score': validation gives score; `score` is taken"),
        ('own/score', ['best_own_score_iter_6.pth'], '; `score` is taken'),
        ('scroe', [], "'scroe': validation gives score, so no best checkpoint is kept by it; did"),
        (['score', 'mAP'], ['best_score_iter_6.pth'], "'mAP': validation gives score, so no best"),
        ('score', ['best_score_iter_6.pth'], None),
        ('auto', ['best_score_iter_6.pth'], None),
    ],
)
def test_a_run_goes_on(asked, kept, said, tmp_path, caplog):
    runner = tiny_run(tmp_path, save_best=asked)
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    runner.train()
    logger.removeHandler(caplog.handler)
    assert sorted(file.name for file in tmp_path.glob('best_*')) == kept
    assert (tmp_path / 'iter_6.pth').exists()
    told = [r.getMessage() for r in caplog.records if 'save_best' in r.getMessage()]
    assert len(told) == (said is not None)  # once, and there are two validations
    assert said is None or said in told[0]
    assert all(r.levelno == logging.WARNING for r in caplog.records if 'save_best' in r.msg)


@pytest.mark.parametrize(
    ('key', 'known', 'found'),
    [
        ('mIou', ['aAcc', 'mIoU'], 'mIoU'),
        ('bbox_mAP', ['coco/bbox_mAP', 'coco/bbox_mAP_50'], 'coco/bbox_mAP'),
        ('coco/bbox_map', ['coco/bbox_mAP'], 'coco/bbox_mAP'),
        ('bbox_mAP', ['a/bbox_mAP', 'b/bbox_mAP'], None),
        ('mAP', ['coco/bbox_mAP'], None),
    ],
)
def test_what_is_meant(key, known, found):
    assert spelt_otherwise(key, known) == found
