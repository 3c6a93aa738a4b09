"""Foundation models teach students, beside other teachers and out of a cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope

from mmkd_plugin.cache.wiring import wire
from mmkd_plugin.checkpoint import read_checkpoint
from mmkd_plugin.fitting import Fitting, files_of, measured_lines, training_images
from mmkd_plugin.report.agreement import agreement_of
from mmkd_plugin.taps import Tap
from mmkd_plugin.teachers import CachedTeacher, OnlineTeacher
from mmkd_plugin.visualization import Gallery, Viewer, places_of
from tests import stock_models
from tests.caches import use_cache, write_cache
from tests.models.foundation.weights import save
from tests.runs import SEG_CLASSES, Record, config, needs_ops, train
from tests.teaching import prepare, taught
from tests.visualization.scenes import META, scene_of

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


def test_two_teachers_count_the_same_once_they_are_measured(data: Path, tmp_path: Path) -> None:
    kinds, normalise = ('dinov2', 'siglip'), dict(type='mmkd_plugin.PHISNormalizer')
    teachers = [dict(name=kind, **foundation(kind, tmp_path)) for kind in kinds]
    distill = {
        kind: term('HintLoss', teacher=kind, teacher_connector=dict(normalise)) for kind in kinds
    }
    cfg = run(teachers, distill, data, tmp_path / 'run')
    lines = measured_lines(cfg)
    ((file, names),) = files_of(lines, cfg.work_dir).items()
    with DefaultScope.overwrite_default_scope('mmseg'):
        fitting = Fitting(cfg, lines)
        shown: dict[str, list] = {kind: [] for kind in kinds}
        for batch in training_images(cfg, None):
            fitting.observe(batch)
            ready = fitting.preprocessor(batch, True)
            for name, (maps,) in fitting.taught.of(ready['inputs'], ready['data_samples']):
                shown[name].append(maps)
    fitting.save(file, names)
    for kind in kinds:
        normalised = fitting.connectors[kind][0](torch.cat(shown[kind]))
        torch.testing.assert_close(normalised.var((0, 2, 3)), torch.ones(32), rtol=1e-3, atol=0)
        cfg.model.distill[kind].teacher_connector.checkpoint = file
    record = Record()
    train(cfg, record)
    assert all({f'distill.{kind}.loss' for kind in kinds} < set(logs) for logs in record.losses)


def test_a_head_for_each_block_is_one_head_on_both(tmp_path: Path) -> None:
    """A linear head on the concatenated blocks, as in LightlyTrain, at the teacher's grid."""
    model = stock_models.distiller(
        stock_models.fcn(classes=len(SEG_CLASSES)),
        foundation('dinov3', tmp_path, blocks=[-2, -1]),
        dict(
            hint=dict(
                student_tap=['backbone[3]', 'backbone[3]'],
                teacher_tap=['maps[0]', 'maps[1]'],
                loss=dict(type='mmkd_plugin.HintLoss', loss_weight=0.5),
            )
        ),
    ).eval()
    hint = model.distill.hint
    shape = torch.Size((2, 32, 3, 4))
    student = torch.randn(2, hint.connectors[0].weight.shape[1], 6, 8)
    blocks = [torch.randn(shape), torch.randn(shape)]
    value = hint([student] * 2, blocks)
    weight, bias = (
        torch.cat([getattr(one, name) for one in hint.connectors]) for name in ('weight', 'bias')
    )
    head = F.conv2d(F.interpolate(student, shape[2:], mode='bilinear'), weight, bias)
    torch.testing.assert_close(value, F.mse_loss(head, torch.cat(blocks, 1)))
    assert len(weight) == 64 and not torch.equal(weight[:32], weight[32:])


def test_a_backbone_that_learnt_without_the_task_is_loaded_by_a_plain_training(
    data: Path, tmp_path: Path
) -> None:
    cfg = run(
        foundation('dinov3', tmp_path), dict(hint=term('CosineHintLoss')), data, tmp_path / 'first'
    )
    cfg.model.task = dict(loss_weight=0)
    first = Record()
    train(cfg, first)
    assert all('decode.loss_ce' not in logs for logs in first.losses)
    file = tmp_path / 'first' / 'iter_2.pth'
    learnt = read_checkpoint(file)['state_dict']
    for key, same in (('backbone.conv1.weight', False), ('decode_head.conv_seg.weight', True)):
        assert torch.equal(learnt[key], first.start[key]) is same

    student = stock_models.fcn(classes=len(SEG_CLASSES))
    student['backbone']['init_cfg'] = dict(
        type='Pretrained', checkpoint=str(file), prefix='backbone.'
    )
    second = Record()
    train(config(student, data, tmp_path / 'second', 1), second)
    assert 'decode.loss_ce' in second.losses[0]
    loaded = {key: value for key, value in second.start.items() if key.startswith('backbone')}
    assert all(torch.equal(value, learnt[key]) for key, value in loaded.items())


@needs_ops
def test_a_detector_learns_up_to_its_neck_without_the_task(data: Path, tmp_path: Path) -> None:
    model = dict(
        _scope_='mmdet',
        type='mmkd_plugin.Distiller',
        student=stock_models.retinanet(8, 2),
        teacher=foundation('dinov3', tmp_path),
        distill=dict(hint=term('CosineHintLoss', student_tap='neck[1]')),
    )
    cfg = config(model, data, tmp_path / 'run', 2)
    cfg.merge_from_dict({'model.task.loss_weight': 0})  # as --cfg-options does
    record = Record()
    train(cfg, record)
    assert {key for key in record.losses[0] if 'loss' in key} == {'loss', 'distill.hint.loss'}
    learnt = read_checkpoint(tmp_path / 'run' / 'iter_2.pth')['state_dict']
    moved = {key.partition('.')[0] for key, x in record.start.items() if not x.equal(learnt[key])}
    assert moved == {'backbone', 'neck'}


@pytest.mark.parametrize('kind', ['dinov2', 'sam'])
def test_a_cache_shows_what_the_model_shows(kind: str, data: Path, tmp_path: Path) -> None:
    """A patch of 14 pixels and a model of one size have whole strides all the same."""
    teacher = foundation(kind, tmp_path, **(dict(stride=16) if kind == 'sam' else {}))
    teacher['inference'] = dict(precision='fp32')
    cfg = run(teacher, dict(hint=term('HintLoss')), data, tmp_path / 'online')
    path = write_cache(cfg, tmp_path / 'cache')
    wired = use_cache(cfg, path)
    wire(wired)
    with DefaultScope.overwrite_default_scope('mmseg'):
        item = DATASETS.build(wired.train_dataloader.dataset)[0]
        preprocessor = stock_models.build(stock_models.fcn()).data_preprocessor
    batch = preprocessor(pseudo_collate([item]), True)
    shown = []
    for one in (OnlineTeacher(**teacher), CachedTeacher(path)):
        prepare(one, preprocessor, [Tap('maps')])
        maps = taught(one, batch['inputs'], batch['data_samples'], [Tap('maps')])[Tap('maps')]
        shown.append(maps[0])
    assert shown[0].shape == (1, dict(dinov2=32, sam=16)[kind], 4, 4)
    torch.testing.assert_close(shown[1], shown[0], rtol=2**-10, atol=1e-4)


def test_pictures_and_agreement_are_of_models_that_predict(data: Path, tmp_path: Path) -> None:
    teacher = foundation('dinov2', tmp_path)
    cfg = run(teacher, dict(hint=term('HintLoss')), data, tmp_path / 'run')
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model).eval()
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        student, scene = model.student, scene_of(model.student)
        (told,) = agreement_of(model, dataset, cfg.model.teacher)
    preprocessor = student.data_preprocessor
    viewers = [
        Viewer('teacher', model.teachers['teacher'].predictor(), preprocessor, 'teacher'),
        Viewer('student', student, preprocessor),
    ]
    places = places_of(model.distill.values())
    pictures, scores = Gallery(viewers, None, META, places, 'teacher').pictures(scene)
    rows = {picture.name: [name for name, _ in picture.grid.rows] for picture in pictures}
    assert rows['predictions'] == ['student'] and set(scores) == {'student'}
    assert told == dict(teacher='teacher', problem='it has no model that predicts')


def test_a_checkpoint_beside_its_own_weights_is_not_needed(tmp_path: Path) -> None:
    teacher = foundation('dinov2', tmp_path)
    file = f'{teacher["config"]["path"]}/model.safetensors'
    told = (
        rf'^{file} has nothing in common with the teacher, whose weights .*: write checkpoint=None$'
    )
    with pytest.raises(ValueError, match=told):
        OnlineTeacher(teacher['config'], checkpoint=file)
