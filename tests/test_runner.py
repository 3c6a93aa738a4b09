"""The Distiller in real runs: resumed, averaged, distributed, and loaded by the stock tools."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmkd_plugin.checkpoint import distillation_state, read_checkpoint
from tests import ddp, stock_models
from tests.runs import (
    DET_CLASSES,
    SEG_CLASSES,
    Record,
    assert_same,
    config,
    needs_ops,
    save_weights,
    train,
)

WEIGHT = 'cwd.connectors.0.weight'
EMA = dict(type='EMAHook', momentum=0.1, update_buffers=True)


pytestmark = pytest.mark.usefixtures('own_globals')


def student(scope: str = 'mmseg', **changes: Any) -> dict:
    if scope == 'mmseg':
        return {**stock_models.pspnet(classes=len(SEG_CLASSES)), **changes}
    return {**stock_models.retinanet(classes=len(DET_CLASSES)), **changes}


def teacher(scope: str = 'mmseg') -> dict:
    if scope == 'mmseg':
        return stock_models.pspnet(16, classes=len(SEG_CLASSES))
    return stock_models.retinanet(16, classes=len(DET_CLASSES))


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random weights of the two teachers."""
    folder = tmp_path_factory.mktemp('teachers')
    return {
        scope: save_weights(teacher(scope), folder / f'{scope}.pth') for scope in ('mmseg', 'mmdet')
    }


@pytest.fixture(scope='module')
def distilled(checkpoints):
    """Makes the dict of a Distiller whose term needs connectors."""

    def make(scope: str = 'mmseg', model: dict | None = None, **changes: Any) -> dict:
        tap = 'decode_head.bottleneck' if scope == 'mmseg' else 'neck'
        term = dict(loss=stock_models.cwd(tau=2, loss_weight=5))
        if 'student_tap' not in changes or 'teacher_tap' not in changes:
            term['tap'] = tap
        return dict(
            _scope_=scope,
            type='mmkd_plugin.Distiller',
            student=model or student(scope),
            teacher=dict(config=teacher(scope), checkpoint=checkpoints[scope]),
            distill=dict(cwd={**term, **changes}),
        )

    return make


def log_of(runner: Runner) -> str:
    return Path(runner.log_dir, f'{runner.timestamp}.log').read_text()


def averaged(runner: Runner) -> torch.nn.Module:
    """The model of a run's EMAHook."""
    return next(hook for hook in runner.hooks if hasattr(hook, 'ema_model')).ema_model.module


def connectors(model: torch.nn.Module) -> dict:
    return dict(model.distill.state_dict())


# Resuming -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('scope', 'by_epoch', 'hooks'),
    [
        ('mmseg', False, []),
        ('mmseg', False, [EMA]),
        ('mmseg', True, [EMA]),
        pytest.param('mmdet', True, [EMA], marks=needs_ops),
    ],
)
def test_a_resumed_run_is_the_same_bit_for_bit(scope, by_epoch, hooks, distilled, data, tmp_path):
    ramp = dict(ramp=3, by_epoch=True) if by_epoch else dict(start=5, ramp=10)
    length = 4 if by_epoch else 20
    model = distilled(scope, schedule=ramp)

    def run(folder: str, **changes: Any) -> tuple[Runner, Record]:
        work_dir, record = tmp_path / folder, Record()
        settings = dict(by_epoch=by_epoch, save_every=length // 2, custom_hooks=hooks, **changes)
        return train(config(model, data, work_dir, length, **settings), record), record

    whole, seen = run('whole')
    half = tmp_path / 'whole' / f'{"epoch" if by_epoch else "iter"}_{length // 2}.pth'
    rest, seen_again = run('rest', load_from=str(half), resume=True)

    done = len(seen.losses) // 2
    assert len(seen_again.losses) == done
    assert_same(seen_again.inputs, seen.inputs[done:])
    assert_same(seen_again.losses, seen.losses[done:])
    scaled = [losses.get('distill.cwd.loss', 0) for losses in seen.losses]
    assert scaled[0] == 0 < scaled[done] and scaled[-1] > 0
    for ours, theirs in ((rest.model, whole.model), (rest.model.student, whole.model.student)):
        assert_same(dict(ours.named_parameters()), dict(theirs.named_parameters()))
        assert_same(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    assert_same(rest.optim_wrapper.state_dict(), whole.optim_wrapper.state_dict())
    assert_same(
        [scheduler.state_dict() for scheduler in rest.param_schedulers],
        [scheduler.state_dict() for scheduler in whole.param_schedulers],
    )
    if hooks:
        ours, theirs = averaged(rest), averaged(whole)
        assert_same(dict(ours.named_parameters()), dict(theirs.named_parameters()))
        assert_same(dict(ours.named_buffers()), dict(theirs.named_buffers()))
        assert not torch.equal(connectors(theirs)[WEIGHT], connectors(whole.model)[WEIGHT])


def learning(distilled: Callable[..., dict]) -> dict:
    """A Distiller whose losses have modules, random masks and a memory of their own."""
    model = distilled()
    feature = 'decode_head.bottleneck'
    model['distill'] = dict(
        masked=dict(
            tap=feature, loss=dict(type='mmkd_plugin.MaskedGenerationLoss', loss_weight=1e-4)
        ),
        memory=dict(
            tap=feature,
            loss=dict(type='mmkd_plugin.MemoryContrastLoss', classes=3, pixels=20, regions=5),
        ),
    )
    return model


def test_masks_memories_and_modules_of_losses_go_on_bit_for_bit(distilled, data, tmp_path):
    def run(folder: str, **changes: Any) -> tuple[Runner, Record]:
        record = Record()
        settings = dict(save_every=3, custom_hooks=[EMA], randomness=dict(seed=3), **changes)
        return train(
            config(learning(distilled), data, tmp_path / folder, 6, **settings), record
        ), record

    whole, seen = run('whole')
    rest, seen_again = run('rest', load_from=str(tmp_path / 'whole' / 'iter_3.pth'), resume=True)
    assert_same(seen_again.losses, seen.losses[3:])
    names = [name for name, _ in whole.model.distill.named_parameters()]
    assert any('loss.generators' in n for n in names) and any('loss.projectors' in n for n in names)
    memory = whole.model.distill.memory.loss.memories[0][0]
    assert memory.next.any()
    for ours, theirs in ((rest.model, whole.model), (averaged(rest), averaged(whole))):
        assert_same(dict(ours.distill.state_dict()), dict(theirs.distill.state_dict()))
    assert_same(rest.optim_wrapper.state_dict(), whole.optim_wrapper.state_dict())
    assert 'memory of 0.' in log_of(whole)


def test_a_self_teacher_goes_on_bit_for_bit_and_leaves_a_plain_student(data, tmp_path):
    model = dict(
        _scope_='mmseg',
        type='mmkd_plugin.Distiller',
        student=stock_models.fcn(classes=len(SEG_CLASSES)),
        teacher=dict(
            type='mmkd_plugin.SelfTeacher',
            tap='backbone',
            neck=dict(type='mmkd_plugin.BiFPNSelfTeacher', width=1),
        ),
        distill=dict(
            features=dict(
                student_tap='backbone',
                teacher_tap='neck',
                loss=dict(type='mmkd_plugin.AttentionLoss', loss_weight=50),
                schedule=dict(start=2, ramp=4, curve='exp'),
            )
        ),
    )

    def run(folder: str, **changes: Any) -> tuple[Runner, Record]:
        record = Record()
        settings = dict(save_every=4, custom_hooks=[EMA], **changes)
        return train(config(model, data, tmp_path / folder, 8, **settings), record), record

    whole, seen = run('whole')
    half = tmp_path / 'whole' / 'iter_4.pth'
    rest, seen_again = run('rest', load_from=str(half), resume=True)
    assert_same(seen_again.losses, seen.losses[4:])
    assert_same(dict(rest.model.named_parameters()), dict(whole.model.named_parameters()))
    assert_same(dict(rest.model.named_buffers()), dict(whole.model.named_buffers()))
    assert_same(dict(averaged(rest).named_parameters()), dict(averaged(whole).named_parameters()))
    first = distillation_state(read_checkpoint(half)['state_dict'])['state']
    last = distillation_state(whole.model.state_dict())['state']
    learnt = [name for name, _ in whole.model.named_parameters() if 'self_teachers' in name]
    assert learnt and not any(torch.equal(first[name], last[name]) for name in learnt)
    state = read_checkpoint(tmp_path / 'whole' / 'iter_8.pth')['state_dict']
    stock_models.build(stock_models.fcn(classes=len(SEG_CLASSES))).load_state_dict(
        state, strict=True
    )


# Checkpoints --------------------------------------------------------------------------------------


def load_with_stock_api(scope: str, cfg: Any, checkpoint: Path) -> torch.nn.Module:
    if scope == 'mmseg':
        from mmseg.apis import init_model

        return init_model(cfg, str(checkpoint), device='cpu')
    from mmdet.apis import init_detector

    return init_detector(cfg, str(checkpoint), palette='random', device='cpu')


@pytest.mark.parametrize('hooks', [[], [EMA]], ids=['plain', 'ema'])
@pytest.mark.parametrize('scope', ['mmseg', pytest.param('mmdet', marks=needs_ops)])
def test_every_checkpoint_is_the_students_own(scope, hooks, distilled, data, tmp_path, capfd):
    class Weights(Hook):
        """Notes the student's weights, or their average, after each iteration."""

        priority = 'LOWEST'  # after the average was taken

        def __init__(self) -> None:
            self.seen: list[dict] = []

        def after_train_iter(self, runner: Runner, **_: Any) -> None:
            model = averaged(runner) if hooks else runner.model
            self.seen.append(copy.deepcopy(model.student.state_dict()))

    weights = Weights()
    model = distilled(scope, schedule=dict(start=2))
    run = config(model, data, tmp_path, 4, save_every=1, custom_hooks=hooks)
    trained = train(run, weights).model.student
    plain = config(student(scope), data, tmp_path, 4, test_dataloader=run.train_dataloader)
    for iteration, expected in enumerate(weights.seen, 1):
        file = tmp_path / f'iter_{iteration}.pth'
        capfd.readouterr()
        loaded = load_with_stock_api(scope, plain, file)
        said = ''.join(capfd.readouterr())
        assert 'Loads checkpoint' in said
        assert not re.search('unexpected|missing|mismatch|do not match', said, re.I), said
        got = loaded.state_dict()
        assert_same(got, type(got)(expected))
        loaded.load_state_dict(read_checkpoint(file)['state_dict'], strict=True)
    same = all(
        torch.equal(value, trained.state_dict()[key]) for key, value in loaded.state_dict().items()
    )
    assert same is (not hooks)


@pytest.fixture
def finished(distilled, data, tmp_path) -> Path:
    """The last checkpoint of a distilled run."""
    train(config(distilled(), data, tmp_path / 'finished', 2))
    return tmp_path / 'finished' / 'iter_2.pth'


def start_from(file: Path | str, model: dict, data: Path, work_dir: Path, *hooks: dict) -> Runner:
    """Goes on from a file for one iteration without learning; what was loaded stays."""
    still = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.0))
    changes = dict(load_from=str(file), optim_wrapper=still, custom_hooks=list(hooks))
    return train(config(model, data, work_dir, 1, **changes))


def weights_of(model: torch.nn.Module) -> dict:
    return {key: value.detach().clone() for key, value in model.named_parameters()}


@pytest.mark.parametrize('hooks', [[], [EMA]], ids=['plain', 'ema'])
def test_load_from_a_plain_student(hooks, distilled, data, tmp_path):
    file = save_weights(student(), tmp_path / 'plain.pth')
    runner = start_from(file, distilled(), data, tmp_path / 'run', *hooks)
    assert_same(weights_of(runner.model.student), weights_of(loaded_student(file)))
    if hooks:
        assert_same(weights_of(averaged(runner)), weights_of(runner.model))
    assert 'do not match' not in log_of(runner)


def loaded_student(file: Path | str) -> torch.nn.Module:
    model = stock_models.build(student())
    model.load_state_dict(read_checkpoint(file)['state_dict'], strict=True)
    return model


def test_load_from_a_distilled_student_brings_the_connectors(finished, distilled, data, tmp_path):
    runner = start_from(finished, distilled(), data, tmp_path / 'run')
    assert 'do not match' not in log_of(runner)
    assert_same(weights_of(runner.model.student), weights_of(loaded_student(finished)))
    state = distillation_state(read_checkpoint(finished)['state_dict'])['state']
    assert_same({f'distill.{k}': v for k, v in connectors(runner.model).items()}, state)


def test_a_plain_student_starts_from_a_distilled_one(finished, data, tmp_path):
    runner = start_from(finished, student(), data, tmp_path / 'run')
    assert_same(weights_of(runner.model), weights_of(loaded_student(finished)))
    assert 'do not match' not in log_of(runner)


@pytest.mark.parametrize(
    ('was_distilled', 'message'),
    [(True, 'distilled checkpoint of another student'), (False, 'not the weights of the student')],
)
def test_load_from_another_student_stops_before_the_first_iteration(
    was_distilled, message, distilled, data, tmp_path
):
    file = tmp_path / 'other.pth'
    if was_distilled:  # part of it fits, so only its marker tells
        other = stock_models.segformer(classes=len(SEG_CLASSES))
        state = stock_models.build(distilled(model=other, tap='decode_head.conv_seg')).state_dict()
        torch.save(dict(state_dict=state), file)
    else:
        save_weights(stock_models.segformer(classes=len(SEG_CLASSES) + 1), file)
    record = Record()
    with pytest.raises(ValueError, match=message) as error:
        train(config(distilled(), data, tmp_path / 'run', 2, load_from=str(file)), record)
    assert "the student's" in str(error.value) and 'the file has backbone.' in str(error.value)
    assert record.inputs == []


# The student's own run ----------------------------------------------------------------------------


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize(
    ('scope', 'by_epoch'), [('mmseg', False), pytest.param('mmdet', True, marks=needs_ops)]
)
def test_it_starts_and_is_fed_as_the_student_would_be_alone(
    scope, by_epoch, workers, distilled, data, tmp_path
):
    records = []
    for model in (student(scope), distilled(scope)):
        record = Record()
        settings = dict(by_epoch=by_epoch, augment=True, workers=workers)
        train(config(model, data, tmp_path, 1 if by_epoch else 3, **settings), record)
        records.append(record)
    alone, ours = records
    assert_same(dict(ours.start), dict(alone.start))
    assert len(ours.inputs) == 3
    assert_same(ours.inputs, alone.inputs)
    for key, value in alone.losses[0].items():
        if key != 'loss':
            assert ours.losses[0][key] == value, key


def test_the_teacher_is_untouched_and_the_plan_is_logged_once(
    distilled, checkpoints, data, tmp_path
):
    model = distilled()
    model['distill']['logits'] = dict(tap='decode_head.conv_seg', loss=stock_models.cwd())
    runner = train(config(model, data, tmp_path, 3, custom_hooks=[EMA]))
    frozen = runner.model.teachers['teacher'].model
    expected = read_checkpoint(checkpoints['mmseg'])['state_dict']
    assert_same(dict(frozen.state_dict()), dict(expected))
    assert all(parameter.grad is None for parameter in frozen.parameters())
    log = log_of(runner)
    assert log.count("teacher 'teacher' (") == 1
    assert '1×1 conv 16→32' in log
    assert 'distill.cwd.loss: ' in log and 'distill.logits.loss: ' in log
    scalars = runner.message_hub.log_scalars
    for name in ('distill.cwd.loss', 'distill.logits.loss', 'decode.loss_ce'):
        assert len(scalars[f'train/{name}'].data[0]) == 3
    written = Path(runner.log_dir, 'vis_data', 'scalars.json').read_text()
    assert '"distill.cwd.loss": ' in written


# Distributed --------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def two_processes(distilled, data, tmp_path_factory) -> SimpleNamespace:
    """A run of three iterations in two processes: what ``first`` and ``second`` saw, its folder.

    The term ``late`` is on in the second iteration alone, the task from the second on.
    """
    folder = tmp_path_factory.mktemp('two_processes')
    model = distilled()
    model['distill']['late'] = dict(
        tap='backbone[3]', loss=stock_models.cwd(), schedule=dict(start=1, stop=2)
    )
    model['distill']['explain'] = dict(
        tap='decode_head.bottleneck',
        explainer=dict(type='mmkd_plugin.GradCAM', scores='decode_head.conv_seg', max_classes=2),
        loss=dict(type='mmkd_plugin.ExplanationLoss'),
    )
    model['task'] = dict(schedule=dict(start=1))  # the head has no gradient at first
    for term in model['distill'].values():
        term['teacher'] = 'teacher'
    model['teacher'] = [
        dict(model['teacher'], name='teacher'),
        dict(
            type='mmkd_plugin.SelfTeacher',
            name='me',
            tap='backbone',
            neck=dict(type='mmkd_plugin.BiFPNSelfTeacher', width=1),
        ),
    ]
    seeds = dict(seed=0, diff_rank_seed=True)
    ddp.in_two_processes(ddp.train_and_note, config(model, data, folder, 3, randomness=seeds))
    first, second = (torch.load(folder / f'rank{rank}.pt') for rank in (0, 1))
    return SimpleNamespace(first=first, second=second, folder=folder)


def test_two_processes_learn_the_same_from_images_of_their_own(two_processes):
    first, second = two_processes.first, two_processes.second
    assert not torch.equal(first['inputs'][0][0], second['inputs'][0][0])
    assert_same(first['parameters'], second['parameters'])
    assert_same(dict(first['teacher']), dict(second['teacher']))


def test_two_processes_exchange_the_gradients_of_all_that_learns(two_processes):
    first = two_processes.first
    self_teacher = [name for name in first['parameters'] if name.startswith('self_teachers.me.')]
    names = {
        *(name for name, _ in stock_models.build(student()).named_parameters()),
        *self_teacher,
        *(
            f'distill.{term}.connectors.0.{end}'
            for term in ('cwd', 'late')
            for end in ('weight', 'bias')
        ),
    }
    assert self_teacher and set(first['parameters']) == names
    assert first['exchanged'] == sorted(names)
    assert first['sent'] == [sum(first['parameter_bytes'].values())] * 3


def test_two_processes_send_nothing_of_the_frozen_teacher(two_processes):
    first = two_processes.first
    start, *iterations = first['traffic']  # of all processes, the start of training included
    learnt, kept = (sum(first[name].values()) for name in ('parameter_bytes', 'buffer_bytes'))
    buffers = {name for name, _ in stock_models.build(student()).named_buffers()}
    others = set(first['buffer_bytes']) - buffers
    assert all(name.startswith('self_teachers.me.') for name in others)
    for sent in iterations:
        assert set(sent) == {'allreduce_', 'broadcast_'}
        assert 0 <= sent['allreduce_'] - learnt < 1000  # and the sizes of gradients at first
        assert 0 <= sent['broadcast_'] - kept < 1000  # once DDP sends the order of its buckets
    # mmengine sends the student's weights, then DDP those of all that is trained
    assert start['broadcast_'] <= 2 * (learnt + kept) and start['allgather_'] < 1000
    assert sum(x.nbytes for x in first['teacher'].values()) > 2 * (learnt + kept)


def test_two_processes_switch_terms_and_the_task_on_and_off(two_processes):
    losses = two_processes.first['losses']
    late = [line.get('distill.late.loss') for line in losses]
    assert late[0] is None and late[1] > 0 and late[2] == 0
    assert ['distill.idle_loss' in line for line in losses] == [True, False, True]
    assert all(line.get('distill.idle_loss', 0) == 0 for line in losses)
    tasks = [any(key.startswith('decode') for key in line) for line in losses]
    assert tasks == [False, True, True]


def test_two_processes_save_the_student_with_the_rest_beside(two_processes):
    state = read_checkpoint(two_processes.folder / 'iter_3.pth')['state_dict']
    stock_models.build(student()).load_state_dict(state, strict=True)
    parameters, rest = two_processes.first['parameters'], distillation_state(state)['state']
    learnt = [name for name in parameters if name.startswith(('distill.', 'self_teachers.'))]
    assert learnt and all(torch.equal(rest[name], parameters[name]) for name in learnt)


def test_the_first_of_two_processes_logs_the_plan_once(two_processes):
    (log,) = two_processes.folder.glob('2*/2*.log')
    assert log.read_text().count("teacher 'teacher' (") == 1


def test_two_processes_share_a_memory_and_draw_masks_of_their_own(distilled, data, tmp_path):
    model = learning(distilled)
    ddp.in_two_processes(ddp.train_and_note, config(model, data, tmp_path, 2))
    first, second = (torch.load(tmp_path / f'rank{rank}.pt') for rank in (0, 1))
    assert_same(first['parameters'], second['parameters'])
    rest = distillation_state(read_checkpoint(tmp_path / 'iter_2.pth')['state_dict'])['state']
    rows = {name: x for name, x in rest.items() if name.endswith('.next')}
    assert len(rows) == 2 and all(x.any() for x in rows.values())
    masked = [[line['distill.masked.loss'] for line in one['losses']] for one in (first, second)]
    assert masked[0] != masked[1]


# Ways to train ------------------------------------------------------------------------------------


def test_accumulated_gradients(distilled, data, tmp_path):
    class Start(Hook):
        def before_train(self, runner: Runner) -> None:
            self.model = copy.deepcopy(runner.model)
            self.batches: list[dict] = []

        def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
            self.batches.append(copy.deepcopy(data_batch))

    start = Start()
    sgd = dict(type='SGD', lr=0.1)
    wrapper = dict(type='OptimWrapper', optimizer=sgd, accumulative_counts=2)
    cfg = config(distilled(), data, tmp_path, 4, optim_wrapper=wrapper, param_scheduler=None)
    trained = train(cfg, start).model

    model = start.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, batch in enumerate(start.batches):
        batch = model.data_preprocessor(batch, True)
        loss, _ = model.parse_losses(model(**batch, mode='loss'))
        (loss / 2).backward()
        if i % 2:
            optimizer.step()
            optimizer.zero_grad()
    assert_same(weights_of(trained), weights_of(model))
    assert any(name.startswith('distill.') for name in weights_of(trained))


def test_checkpointed_activations(distilled, data, tmp_path):
    """A tap after a checkpointed block reads the same, and the student learns the same."""
    term = dict(tap='backbone.layer3', loss=stock_models.cwd())
    runs = []
    with_cp = student()
    with_cp['backbone'] = dict(with_cp['backbone'], with_cp=True)
    for i, (model, changes) in enumerate(
        [
            (student(), {}),
            (with_cp, {}),
            (student(), dict(activation_checkpointing=['backbone.layer2', 'backbone.layer3'])),
        ]
    ):
        record = Record()
        cfg = config(distilled(model=model, **term), data, tmp_path / str(i), 2, **changes)
        runs.append((train(cfg, record), record))
    (plain, seen), *others = runs
    expected = weights_of(plain.model)
    for runner, record in others:
        for ours, theirs in zip(record.losses, seen.losses, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
        torch.testing.assert_close(weights_of(runner.model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(os.environ.get('FAMILIES') != 'all', reason='slow: `make families` runs it')
@pytest.mark.parametrize('backend', ['eager', 'inductor'])
def test_a_compiled_runner_learns_the_same(backend, distilled, data, tmp_path):
    plain, whole = Record(), Record()
    train(config(distilled(), data, tmp_path / 'plain', 2), plain)
    compiled = dict(compile=dict(backend=backend))
    train(config(distilled(), data, tmp_path / 'compiled', 2, **compiled), whole)
    for ours, theirs in zip(whole.losses, plain.losses, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_tap_inside_a_checkpointed_block(distilled, data, tmp_path):
    model = student()
    model['backbone'] = dict(model['backbone'], with_cp=True)
    distiller = distilled(model=model, tap='backbone.layer3.0.conv1', loss=stock_models.cwd())
    with pytest.raises(ValueError, match=r"no gradient flows into 'backbone.layer3.0.conv1'.*cp="):
        train(config(distiller, data, tmp_path / 'inside', 2))
