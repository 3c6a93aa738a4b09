"""``--resume`` with something else: refused if it cannot work, and else named key by key."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import PolyLR
from mmengine.runner import Runner

from mmkd_plugin.cache.wiring import wire
from mmkd_plugin.checkpoint import CheckpointError, read_checkpoint
from mmkd_plugin.running.hook import make_resumable
from mmkd_plugin.running.identity import differences
from mmkd_plugin.running.resuming import check_run_state, check_unfinished, use_seed
from mmkd_plugin.training import file_named
from tests.caches import write_cache
from tests.fuzz import models
from tests.models.foundation.weights import plain, stand_in
from tests.runs import config, make_data, save_weights
from tests.stock_models import cwd, fcn

pytestmark = pytest.mark.usefixtures('own_globals')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Data, two teachers, and one run of two iterations."""
    folder = tmp_path_factory.mktemp('run')
    make_data(folder)
    for name, seed in (('teacher', 7), ('other', 8)):
        save_weights(fcn(16, classes=3), folder / f'{name}.pth', seed)
    (folder / 'moved').mkdir()
    (folder / 'moved/same.pth').write_bytes((folder / 'teacher.pth').read_bytes())
    start(settings(folder, folder / 'whole'))
    return folder


def settings(folder: Path, work_dir: Path, length: int = 2) -> Config:
    """A run of two terms; one of them has a connector."""
    model = dict(
        _scope_='mmseg',
        type='mmkd_plugin.Distiller',
        student=fcn(classes=3),
        teacher=dict(config=fcn(16, classes=3), checkpoint=str(folder / 'teacher.pth')),
        distill=dict(
            cwd=dict(tap='backbone.layer4', loss=cwd(tau=2, loss_weight=5)),
            logits=dict(tap='decode_head.conv_seg', loss=cwd(tau=1, loss_weight=1)),
        ),
    )
    cfg = config(model, folder, work_dir, length)
    cfg.param_scheduler[0].end = 5
    return cfg


def start(cfg: Config, allow_changes: bool = False) -> Runner:
    runner = Runner.from_cfg(cfg)
    make_resumable(runner, allow_changes)
    runner.train()
    return runner


def resume(
    folder: Path, work_dir: Path, change: Callable[[Config], Any], allow_changes: bool = False
) -> Runner:
    cfg = settings(folder, work_dir, length=3)
    change(cfg)
    cfg.load_from, cfg.resume = str(folder / 'whole/iter_2.pth'), True
    return start(cfg, allow_changes)


def said(runner: Runner, level: str) -> list[str]:
    """What the log of a run says of resuming."""
    lines = Path(runner.log_dir, f'{runner.timestamp}.log').read_text().splitlines()
    return [line for line in lines if f' {level} - --resume: ' in line]


def heads(model: Any) -> list[Any]:
    """The heads of student and teacher."""
    model.teacher.checkpoint = None
    return [model.student.decode_head, model.teacher.config.decode_head]


def at(key: str, value: Any) -> Callable[[Config], Any]:
    return lambda cfg: cfg.merge_from_dict({key: value})


IMPOSSIBLE = {
    'a term was removed': (
        lambda cfg: cfg.model.distill.pop('cwd'),
        r'trained \d+ parameters, and this run trains \d+ \(gone: distill\.cwd\..*'
        r'model\.distill\.cwd: \{.* → not there',
    ),
    'a term was added': (
        at('model.distill.hint', dict(tap='backbone.layer3', loss=cwd(tau=1, loss_weight=1))),
        r'new: distill\.hint\..*model\.distill\.hint: not there → ',
    ),
    'another tap': (
        at('model.distill.cwd.tap', 'backbone.layer3'),
        r"distill\.cwd.*model\.distill\.cwd\.tap: 'backbone\.layer4' → 'backbone\.layer3'",
    ),
    'another teacher width': (
        lambda cfg: cfg.model.teacher.update(config=fcn(24, classes=3), checkpoint=None),
        r'distill\.cwd.*is \(128, .* is needed|connectors.*model\.teacher\.config',
    ),
    'another student width': (
        lambda cfg: cfg.model.update(student=fcn(16, classes=3)),
        r'backbone\.\S+ is \(.*\) in it, and \(.*\) here.*model\.student\.backbone\.base_channels',
    ),
    'other classes': (
        lambda cfg: [head.update(num_classes=4) for head in heads(cfg.model)],
        r'conv_seg\.weight is \(3, .* in it, and \(4, .*decode_head\.num_classes: 3 → 4',
    ),
    'another optimizer': (
        lambda cfg: setattr(cfg.optim_wrapper, 'optimizer', dict(type='AdamW', lr=0.01)),
        r"optimizer has momentum, and the one of this run betas.*type: 'SGD' → 'AdamW'",
    ),
}


@pytest.mark.parametrize(('change', 'message'), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_cannot_work_is_refused(change, message, folder, tmp_path):
    with pytest.raises(CheckpointError, match=message) as info:
        resume(folder, tmp_path, change)
    assert '\n' not in str(info.value) and 'load_from=' in str(info.value)


ANOTHER = {
    'weight': (at('model.distill.cwd.loss.loss_weight', 6), 'loss.loss_weight: 5 → 6'),
    'tau': (at('model.distill.cwd.loss.tau', 3), 'model.distill.cwd.loss.tau: 2 → 3'),
    'schedule': (
        at('model.distill.cwd.schedule', dict(start=2)),
        "model.distill.cwd.schedule: not there → {'start': 2}",
    ),
    'teacher': (
        lambda cfg: cfg.model.teacher.update(
            checkpoint=cfg.model.teacher.checkpoint.replace('teacher.pth', 'other.pth')
        ),
        "weights of teacher 'teacher': ",
    ),
    'data': (
        lambda cfg: cfg.train_dataloader.dataset.update(indices=4),
        'train_dataloader.dataset.indices: not there → 4',
    ),
    'pipeline': (
        lambda cfg: cfg.train_dataloader.dataset.pipeline.insert(
            2, dict(type='RandomFlip', prob=0.5)
        ),
        'train_dataloader.dataset.pipeline: [LoadImageFromFile, LoadAnnotations, PackSegInputs] → ',
    ),
    'loss': (
        at('model.distill.logits.loss', dict(type='mmkd_plugin.PixelWiseLoss')),
        "model.distill.logits.loss.type: 'mmkd_plugin.ChannelWiseLoss' → ",
    ),
    'fewer images': (at('train_dataloader.dataset.indices', 4), 'training data.images: 6 → 4'),
    'names of classes': (
        at('train_dataloader.dataset.metainfo.classes', ['ground', 'box', 'ring']),
        "training data.classes: ['ground', 'box', 'disc'] → ['ground', 'box', 'ring']",
    ),
    'seed': (at('randomness.seed', 1), 'randomness.seed: 0 → 1'),
}


@pytest.mark.parametrize(('change', 'message'), ANOTHER.values(), ids=ANOTHER)
def test_another_run_is_refused_key_by_key(change, message, folder, tmp_path):
    with pytest.raises(CheckpointError, match='this run is not the run of ') as info:
        resume(folder, tmp_path, change)
    text = str(info.value)
    assert message in text and '\n' not in text
    assert 'by --allow-changes;' in text and 'load_from=' in text


def other_cache(cfg: Config, data: Path, folder: Path) -> None:
    """The same teacher with other weights, of the same names and shapes."""
    cfg.model = models.with_a_cache(data, folder / 'other')


def other_precision(cfg: Config, data: Path, folder: Path) -> None:
    """The same maps, stored with fewer bits."""
    teacher = models.online(models.segmentor(8))
    other = models.distiller(models.segmentor(4), teacher, cfg.model.distill.to_dict())
    run = config(other, data, folder / 'run', 1, augment=True)
    cfg.model.teacher.path = write_cache(run, folder / 'smaller', dtype='uint8')


def other_weights(cfg: Config, data: Path, folder: Path) -> None:
    """Other weights of a foundation model, in the place of those that it had."""
    file = Path(cfg.model.teacher.config.path, 'pytorch_model.bin')
    changed = {key: value + 0.1 for key, value in torch.load(file, weights_only=True).items()}
    torch.save(changed, file)


def with_a_cache(data: Path, folder: Path) -> dict:
    torch.manual_seed(0)
    return models.with_a_cache(data, folder / 'first')


def with_a_foundation_model(data: Path, folder: Path) -> dict:
    model = models.with_a_foundation_model()
    shutil.copytree(model['teacher']['config']['path'], folder / 'weights')
    model['teacher']['config']['path'] = str(folder / 'weights')
    weights = plain('dinov2').state_dict()
    (folder / 'weights/model.safetensors').unlink()
    torch.save(weights, folder / 'weights/pytorch_model.bin')
    return model


def with_a_self_teacher(data: Path, folder: Path) -> dict:
    return models.with_a_self_teacher()


def with_two_taps(data: Path, folder: Path) -> dict:
    tap = 'backbone.conv2'
    term = dict(student_tap=tap, teacher_tap=tap, loss=models.own('AttentionLoss'))
    teacher = models.online(models.segmentor(8))
    teacher['checkpoint'] = save_weights(models.segmentor(8), folder / 't.pth')
    return models.distiller(models.segmentor(4), teacher, dict(attention=term))


def on(key: str, value: Any) -> Callable[..., Any]:
    return lambda cfg, *_: cfg.merge_from_dict({key: value})


#: Models, what is changed in them, and what is said of it.
OTHER_TEACHERS: dict[str, tuple[Callable[..., dict], Callable[..., Any], str]] = {
    'cache': (with_a_cache, other_cache, "weights of teacher 'stored': "),
    'precision of a cache': (with_a_cache, other_precision, "config of teacher 'stored': "),
    'weights in place': (with_a_foundation_model, other_weights, "weights of teacher 'teacher': "),
    'foundation model': (
        with_a_foundation_model,
        lambda cfg, *_: cfg.model.teacher.config.update(path=stand_in('transformers', 'dinov3-x')),
        "weights of teacher 'teacher': ",
    ),
    'blocks': (
        with_a_foundation_model,
        on('model.teacher.config.blocks', [1, -1]),
        'model.teacher.config.blocks: [0, -1] → [1, -1]',
    ),
    'weight of a self-teacher': (
        with_a_self_teacher,
        on('model.teacher.loss_weight', 1.0),
        'model.teacher.loss_weight: 0.5 → 1.0',
    ),
    'head of a self-teacher': (
        with_a_self_teacher,
        on('model.teacher.head.dropout_ratio', 0.1),
        'model.teacher.head.dropout_ratio: 0.0 → 0.1',
    ),
    'tap of the teacher': (
        with_two_taps,
        on('model.distill.attention.teacher_tap', 'backbone.norm2'),
        "model.distill.attention.teacher_tap: 'backbone.conv2' → 'backbone.norm2'",
    ),
}


@pytest.mark.parametrize(('make', 'change', 'message'), OTHER_TEACHERS.values(), ids=OTHER_TEACHERS)
def test_another_teacher_is_refused(make, change, message, data, tmp_path):
    first = config(make(data, tmp_path), data, tmp_path / 'work', 2, augment=True)
    second = copy.deepcopy(first)
    second.load_from, second.resume = str(tmp_path / 'work/iter_2.pth'), True
    second.train_cfg.max_iters = 3
    again = copy.deepcopy(second)
    for cfg in (first, again):  # the second is the same run
        wire(cfg)
        start(cfg)
    change(second, data, tmp_path)
    wire(second)
    with pytest.raises(CheckpointError, match='this run is not the run of ') as info:
        start(second)
    text = str(info.value)
    assert message in text and 'by --allow-changes;' in text, text


def test_a_larger_self_teacher_cannot_go_on(data, tmp_path):
    cfg = config(models.with_a_self_teacher(), data, tmp_path, 2)
    start(copy.deepcopy(cfg))
    cfg.merge_from_dict({'model.teacher.neck.depth': 2, 'load_from': str(tmp_path / 'iter_2.pth')})
    cfg.resume = True
    with pytest.raises(CheckpointError, match=r'cannot go on.*model\.teacher\.neck\.depth: 1 → 2'):
        start(cfg)


def test_another_run_that_is_meant_goes_on(folder, tmp_path):
    change, message = ANOTHER['weight']
    runner = resume(folder, tmp_path, change, allow_changes=True)
    (line,) = said(runner, 'WARNING')
    assert 'this run is not the run of ' in line and message in line and runner.iter == 3


def test_what_was_only_moved_is_no_change(folder, tmp_path):
    shutil.copytree(folder / 'images', tmp_path / 'data/images')
    shutil.copytree(folder / 'masks', tmp_path / 'data/masks')
    file = tmp_path / 'teacher.py'
    file.write_text(f'model = {settings(folder, tmp_path).model.teacher.config.to_dict()!r}\n')

    def change(cfg: Config) -> None:
        cfg.train_dataloader.dataset.data_root = str(tmp_path / 'data')
        cfg.model.teacher = dict(config=str(file), checkpoint=str(folder / 'moved/same.pth'))

    assert not said(resume(folder, tmp_path / 'run', change), 'WARNING')


def test_a_teacher_whose_config_was_edited_is_another(folder, tmp_path):
    file = tmp_path / 'teacher.py'
    cfg = settings(folder, tmp_path / 'run')
    teacher = cfg.model.teacher.config.to_dict()
    for dilation in (1, 2):
        teacher['backbone']['dilations'] = (1, 1, 1, dilation)
        file.write_text(f'model = {teacher!r}\n')
        cfg = settings(folder, tmp_path / 'run', length=1 + dilation)
        cfg.model.teacher.config = str(file)
        if dilation == 2:
            cfg.load_from, cfg.resume = str(tmp_path / 'run/iter_2.pth'), True
            with pytest.raises(CheckpointError, match=r"config of teacher 'teacher': \w+ → \w+"):
                start(cfg)
        else:
            start(cfg)


def test_the_seed_of_a_run_without_one_is_no_difference(folder, tmp_path):
    cfg = settings(folder, tmp_path)
    cfg.pop('randomness')
    runner = start(cfg)
    content = read_checkpoint(tmp_path / 'iter_2.pth')
    assert content['meta']['mmkd_run']['config']['randomness'] == dict(seed=runner.seed)


def test_a_change_without_effect_says_so(folder, tmp_path):
    runner = resume(folder, tmp_path, at('optim_wrapper.optimizer.lr', 0.5))
    (line,) = said(runner, 'WARNING')
    assert 'optim_wrapper.optimizer.lr: 0.01 → 0.5' in line and 'no effect' in line
    assert runner.optim_wrapper.param_groups[0]['lr'] < 0.02


def test_what_may_change_is_said_without_a_warning(folder, tmp_path):
    def change(cfg: Config) -> None:
        cfg.train_dataloader.batch_size = 3
        cfg.model.teacher.checkpoint = str(folder / 'moved/same.pth')

    runner = resume(folder, tmp_path, change)
    assert not said(runner, 'WARNING')
    (line,) = said(runner, 'INFO')
    assert 'train_dataloader.batch_size: 2 → 3' in line and 'max_iters: 2 → 3' in line


@pytest.mark.parametrize(('stored', 'told'), [(1, False), (4, True), (None, False)])
def test_another_number_of_processes_is_said(stored, told, folder, tmp_path):
    content = read_checkpoint(folder / 'whole/iter_2.pth')
    assert content['meta']['mmkd_run'].pop('processes') == 1
    if stored is not None:
        content['meta']['mmkd_run']['processes'] = stored
    torch.save(content, tmp_path / 'iter_2.pth')
    cfg = settings(folder, tmp_path, length=3)
    cfg.load_from, cfg.resume = str(tmp_path / 'iter_2.pth'), True
    runner = start(cfg)
    assert not said(runner, 'WARNING')
    (line,) = said(runner, 'INFO')
    assert ('number of processes: 4 → 1' in line) is told and 'max_iters: 2 → 3' in line


@pytest.mark.parametrize('path', ['data.images', 'teachers.teacher', 'configs_of_teachers.teacher'])
def test_an_identity_with_a_tensor_in_it_is_another_run(path, folder, tmp_path):
    content = read_checkpoint(folder / 'whole/iter_2.pth')
    part, key = path.split('.')
    assert key in content['meta']['mmkd_run'][part]
    content['meta']['mmkd_run'][part][key] = torch.full((2, 2), torch.nan)
    torch.save(content, tmp_path / 'iter_2.pth')
    cfg = settings(folder, tmp_path, length=3)
    cfg.load_from, cfg.resume = str(tmp_path / 'iter_2.pth'), True
    with pytest.raises(CheckpointError, match=key):
        start(cfg)


def test_a_checkpoint_without_an_identity_goes_on(folder, tmp_path):
    content = read_checkpoint(folder / 'whole/iter_2.pth')
    del content['meta']['mmkd_run']
    torch.save(content, tmp_path / 'iter_2.pth')
    cfg = settings(folder, tmp_path, length=3)
    cfg.load_from, cfg.resume = str(tmp_path / 'iter_2.pth'), True
    assert start(cfg).iter == 3
    cfg.model.distill.pop('cwd')
    with pytest.raises(CheckpointError, match=r'it trained \d+ parameters, and this run trains'):
        start(cfg)


@pytest.mark.parametrize(
    ('key', 'value'), [('_global_step', -1), ('last_step', -5), ('param_name', 'nothing')]
)
def test_schedules_that_no_run_can_have_saved(key, value, folder, tmp_path):
    content = read_checkpoint(folder / 'whole/iter_2.pth')
    content['param_schedulers'][0][key] = value
    torch.save(content, tmp_path / 'iter_2.pth')
    cfg = settings(folder, tmp_path, length=3)
    cfg.load_from, cfg.resume = str(tmp_path / 'iter_2.pth'), True
    with pytest.raises(CheckpointError, match=rf'iter_2\.pth.*param_schedulers\.0\.{key} is '):
        start(cfg)


def by_iteration(kind: str, **settings: Any) -> dict[str, Any]:
    return dict(type=kind, by_epoch=False, **settings)


WARM_UP = by_iteration('LinearLR', start_factor=0.1, end=3)
SCHEDULES = dict(
    none=[],
    begins_later=[WARM_UP, by_iteration('CosineAnnealingLR', begin=3, end=5)],
    ends_early=[by_iteration('ConstantLR', factor=0.5, end=1)],
    restarts=[by_iteration('CosineRestartLR', periods=[2, 3], restart_weights=[1, 0.5], eta_min=0)],
    exponential=[by_iteration('ExponentialLR', gamma=0.9)],
    milestones=[by_iteration('MultiStepLR', milestones=[1, 3])],
    one_cycle=[by_iteration('OneCycleLR', eta_max=0.1, total_steps=5)],
    poly=[WARM_UP, by_iteration('PolyLR', begin=3, end=5, eta_min=1e-4)],
    steps=[by_iteration('StepLR', step_size=2)],
    waits_for_a_score=[dict(type='ReduceOnPlateauLR', monitor='loss', rule='less')],
    quadratic=[by_iteration('mmdet.QuadraticWarmupLR', end=4)],
    momentum=[WARM_UP, by_iteration('CosineAnnealingMomentum', begin=3, T_max=3)],
)


@pytest.mark.parametrize('schedules', SCHEDULES.values(), ids=SCHEDULES)
def test_any_schedule_goes_on_exactly(schedules, folder, tmp_path):
    if any(one['type'].startswith('mmdet.') for one in schedules):
        pytest.importorskip('mmdet')

    def run(name: str, of: Path | None = None) -> Runner:
        cfg = settings(folder, tmp_path / name, length=5)
        cfg.param_scheduler = copy.deepcopy(schedules)
        cfg.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=-1)
        cfg.load_from, cfg.resume = of and str(of), of is not None
        return start(cfg)

    whole = run('at_once')
    resumed = run('resumed', tmp_path / 'at_once/iter_2.pth')
    assert resumed.iter == 5
    values = resumed.model.state_dict()
    assert all(torch.equal(value, values[name]) for name, value in whole.model.state_dict().items())
    assert resumed.optim_wrapper.get_lr() == whole.optim_wrapper.get_lr()


@pytest.mark.parametrize('key', ['last_step', '_global_step'])
def test_a_count_below_that_of_a_schedule_that_waits(key, folder, tmp_path):
    content = read_checkpoint(folder / 'whole/iter_2.pth')
    content['param_schedulers'][0][key] = -2
    torch.save(content, tmp_path / 'iter_2.pth')
    cfg = settings(folder, tmp_path, length=3)
    cfg.load_from, cfg.resume = str(tmp_path / 'iter_2.pth'), True
    with pytest.raises(CheckpointError, match=rf'param_schedulers\.0\.{key} is -2'):
        start(cfg)


def test_a_schedule_that_cannot_go_on_names_the_file():
    def go_on() -> None:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        schedule = PolyLR(optimizer, end=2)
        schedule.load_state_dict(dict(end=9))  # beyond the length that it was built for
        for _ in range(5):
            optimizer.step()
            schedule.step()

    message = r'^x\.pth: a schedule cannot go on from its state'
    with pytest.raises(CheckpointError, match=message), file_named('x.pth', resumed=True):
        go_on()
    with pytest.raises(ZeroDivisionError), file_named('x.pth'):
        go_on()


def test_lists_of_another_length_are_one_difference():
    old, new = [dict(type='A'), dict(type='B')], [dict(type='A')]
    assert [str(one) for one in differences(dict(x=old), dict(x=new))] == ['x: [A, B] → [A]']
    assert [one.key for one in differences([1, 2], [1, 3], 'x')] == ['x']


@pytest.mark.parametrize(
    ('train_cfg', 'meta', 'message'),
    [
        (dict(max_iters=4), dict(iter=5, epoch=0), r'has iter 5, and `train_cfg\.max_iters` is 4'),
        (dict(max_iters=4), dict(iter=10**12, epoch=0), 'nothing is left to train'),
        (dict(max_epochs=2), dict(iter=50, epoch=3), r'has epoch 3, and `train_cfg\.max_epochs`'),
    ],
)
def test_a_run_that_is_longer_already_is_not_resumed(train_cfg, meta, message, log):
    with pytest.raises(CheckpointError, match=message):
        check_unfinished(dict(meta=meta), 'iter.pth', train_cfg)
    check_unfinished(dict(meta=dict(iter=3, epoch=1)), 'iter.pth', train_cfg)
    assert not log.warnings
    check_unfinished(dict(meta=dict(iter=4, epoch=2)), 'iter.pth', train_cfg)  # just done
    assert 'nothing is left to train' in log.warnings[0]


def test_a_run_without_a_seed_takes_the_one_of_its_checkpoint():
    cfg = Config(dict(randomness=dict(deterministic=True)))
    use_seed(dict(meta=dict(seed=5)), cfg)
    assert cfg.randomness == dict(deterministic=True, seed=5)
    use_seed(dict(meta=dict(seed=6)), cfg)
    assert cfg.randomness.seed == 5


def test_a_config_in_the_state_is_not_run(folder):
    content = read_checkpoint(folder / 'whole/iter_2.pth')
    content['meta']['config'] = 'import os'
    with pytest.raises(CheckpointError, match=r'`meta\.config` is code'):
        check_run_state(content, 'iter_2.pth')
