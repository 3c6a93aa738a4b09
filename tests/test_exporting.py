"""What the config of a student needs elsewhere."""

from __future__ import annotations

import pytest
from mmengine.config import Config

from mmkd_plugin.exporting import add_test_pipeline

STEPS = [dict(type='LoadImageFromFile')]
PLAIN = dict(type='BaseSegDataset', pipeline=STEPS)


@pytest.mark.parametrize(
    'dataset',
    [PLAIN, dict(type='RepeatDataset', dataset=PLAIN), dict(type='Concat', datasets=[PLAIN, {}])],
    ids=lambda dataset: dataset['type'],
)
def test_the_pipeline_of_the_test_data(dataset: dict) -> None:
    cfg = Config(dict(test_dataloader=dict(dataset=dataset)))
    add_test_pipeline(cfg)
    assert cfg.test_pipeline == STEPS
    cfg.test_pipeline = ['mine']
    add_test_pipeline(cfg)
    assert cfg.test_pipeline == ['mine']


@pytest.mark.parametrize('cfg', [{}, dict(test_dataloader=None), dict(test_dataloader=dict(a=1))])
def test_without_test_data(cfg: dict) -> None:
    cfg = Config(cfg)
    add_test_pipeline(cfg)
    assert 'test_pipeline' not in cfg
