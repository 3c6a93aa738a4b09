"""Two processes give exactly the numbers of one, for a number of images that is not even."""

from __future__ import annotations

import json
import math
import socket

import pytest
import torch

from tests.metrics import ddp
from tests.metrics.runs import config_of, detector, run_test, weighted
from tests.runs import needs_ops


@needs_ops
def test_two_processes(data, tmp_path):
    model, teacher = weighted(detector(), tmp_path), weighted(detector(), tmp_path, seed=3)
    explainer = dict(type='mmkd_plugin.GradCAM', scores='bbox_head.retina_cls', score_thr=0.0099)
    explained = dict(explainer=explainer, tap='backbone.layer3')
    metrics = [
        dict(type='mmkd_plugin.TeacherAgreement', teacher=teacher, score_thr=0.01),
        dict(type='mmkd_plugin.ExplanationLocalization', **explained),
        dict(type='mmkd_plugin.ExplanationSimilarity', teacher=teacher, **explained),
    ]
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
    result = json.loads(file.read_text())
    assert result == pytest.approx(expected, rel=1e-5)  # images meet in other batches
    counts = [key for key in expected if key.startswith('agreement/')]
    assert counts and {k: result[k] for k in counts} == {k: expected[k] for k in counts}
    assert not any(math.isnan(value) for value in expected.values())
