"""Two processes give exactly the numbers of one, for a number of images that is not even."""

from __future__ import annotations

import json
import socket

import pytest
import torch

from tests import models
from tests.metrics import ddp
from tests.metrics.runs import config_of, run_test, weighted
from tests.runs import needs_ops


def segmentor(**preprocessor) -> dict:
    return models.pspnet(classes=3, **preprocessor)


def detector() -> dict:
    model = models.retinanet(classes=2)
    model['test_cfg'].update(score_thr=0.0, max_per_img=20)
    return model


@pytest.mark.parametrize('make', [segmentor, pytest.param(detector, marks=needs_ops)])
def test_two_processes(make, data, tmp_path):
    model, teacher = weighted(make(), tmp_path), weighted(make(), tmp_path, seed=3)
    metrics = [dict(type='mmkd_plugin.TeacherAgreement', teacher=teacher, score_thr=0.01)]
    expected, _ = run_test(model, data, tmp_path, *metrics, indices=5)
    settings = config_of(model, data, tmp_path, *metrics, indices=5)
    settings.merge_from_dict(
        dict(
            launcher='pytorch',
            env_cfg=dict(dist_cfg=dict(backend='gloo')),
            model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None),
        )
    )
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    file = tmp_path / 'result.json'
    arguments = (settings.to_dict(), port, str(file))
    torch.multiprocessing.spawn(ddp.worker, arguments, nprocs=2, join=True)
    assert json.loads(file.read_text()) == expected
