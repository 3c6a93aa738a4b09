"""Foundation models teach students, beside other teachers and out of a cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmkd_plugin.cache.wiring import wire
from mmkd_plugin.checkpoint import read_checkpoint
from tests import stock_models
from tests.caches import use_cache, write_cache
from tests.models.foundation.weights import save
from tests.runs import SEG_CLASSES, Record, config, train

pytest.importorskip('transformers', reason='transformers is an option of the user')
pytestmark = [pytest.mark.usefixtures('own_globals'), pytest.mark.filterwarnings('ignore')]

LOSSES = dict(
    HintLoss={}, CosineHintLoss=dict(scope='token'), GramLoss={}, TokenRelationLoss=dict(queue=8)
)


def foundation(kind: str, root: Path, **kwargs) -> dict:
    model = dict(type='mmkd_plugin.FoundationModel', source='transformers', path=save(kind, root))
    return dict(config={**model, **kwargs}, checkpoint=None)


def term(kind: str, teacher_tap: str = 'maps', **changes) -> dict:
    loss = dict(type=f'mmkd_plugin.{kind}', loss_weight=0.1, **LOSSES[kind])
    return dict(student_tap='backbone[3]', teacher_tap=teacher_tap, loss=loss) | changes


def run(teacher: dict | list, distill: dict, data: Path, work_dir: Path, **kwargs):
    student = stock_models.fcn(classes=len(SEG_CLASSES))
    model = dict(
        _scope_='mmseg',
        type='mmkd_plugin.Distiller',
        student=student,
        teacher=teacher,
        distill=distill,
    )
    return config(model, data, work_dir, 2, **kwargs)


def test_two_foundation_models_teach_beside_the_task(data: Path, tmp_path: Path) -> None:
    teachers = [
        dict(name='patches', **foundation('dinov2', tmp_path, blocks=[0, 1])),
        dict(name='registers', **foundation('dinov3', tmp_path)),
    ]
    distill = {kind: term(kind, teacher='registers') for kind in LOSSES}
    distill['blocks'] = term(
        'CosineHintLoss', student_tap=['backbone[2]', 'backbone[3]'], teacher='patches'
    )
    record = Record()
    runner = train(run(teachers, distill, data, tmp_path / 'run'), record)
    for logs in record.losses:
        assert {key for key in logs if key.startswith('distill')} == {
            f'distill.{name}.loss' for name in distill
        }
        assert all(torch.isfinite(torch.as_tensor(value)).all() for value in logs.values())
    saved = read_checkpoint(tmp_path / 'run' / 'iter_2.pth')['state_dict']
    assert set(saved) == set(stock_models.build(stock_models.fcn(classes=3)).state_dict())
    assert 'registers' in runner.model.teachers['registers'].work()


@pytest.mark.parametrize('kind', ['dinov2', 'sam'])
def test_a_cache_shows_what_the_model_shows(kind: str, data: Path, tmp_path: Path) -> None:
    """A patch of 14 pixels and a model of one size have whole strides all the same."""
    teacher = foundation(kind, tmp_path, **(dict(stride=16) if kind == 'sam' else {}))
    teacher['inference'] = dict(precision='fp32')
    cfg = run(teacher, dict(hint=term('HintLoss')), data, tmp_path / 'online')
    path = write_cache(cfg, tmp_path / 'cache')
    cached = use_cache(cfg, path)
    wire(cached)
    losses = []
    for one in (cfg, cached):
        one.work_dir = str(tmp_path / f'run {len(losses)}')
        record = Record()
        train(one, record)
        losses.append(torch.as_tensor([float(x['distill.hint.loss']) for x in record.losses]))
    torch.testing.assert_close(*losses, rtol=1e-2, atol=0)
