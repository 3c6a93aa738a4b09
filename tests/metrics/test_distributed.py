"""Two processes give exactly the numbers of one, for an odd number of images."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from tests.ddp import in_two_processes
from tests.metrics.runs import config_of, detector, run_test, weighted
from tests.runs import needs_ops


def write_numbers(rank: int, cfg: Config) -> None:
    """Tests; the first process writes the numbers into the work dir."""
    result = Runner.from_cfg(cfg).test()
    if rank == 0:
        Path(cfg.work_dir, 'result.json').write_text(json.dumps(result))


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
    in_two_processes(write_numbers, settings)
    result = json.loads((tmp_path / 'result.json').read_text())
    assert result == pytest.approx(expected, rel=1e-5)  # images meet in other batches
    counts = [key for key in expected if key.startswith('agreement/')]
    assert counts and {k: result[k] for k in counts} == {k: expected[k] for k in counts}
    assert not any(math.isnan(value) for value in expected.values())
