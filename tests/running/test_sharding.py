"""Runs whose weights are split over two processes learn what DDP learns, and save what it saves."""

from __future__ import annotations

import argparse
import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.utils import digit_version

from mmkd_plugin import training
from mmkd_plugin.checkpoint import distillation_state, read_checkpoint
from mmkd_plugin.cli import build_runner
from mmkd_plugin.cores import Cores
from mmkd_plugin.health import NotFiniteError
from mmkd_plugin.registry import HOOKS
from mmkd_plugin.running.sharding import OLDEST, ShardedRunner
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
    validated,
)

pytestmark = [
    pytest.mark.usefixtures('own_globals'),
    pytest.mark.skipif(
        digit_version(torch.__version__) < digit_version(OLDEST), reason='torch is too old'
    ),
]

WEIGHT = 'decode_head.conv_seg.weight'
SHARDED = dict(runner_type='mmkd_plugin.ShardedRunner')

#: What `tools/train.py` was called with.
TYPED = argparse.Namespace(
    cfg_options=None,
    config='run.py',
    amp=False,
    auto_scale_lr=False,
    resume=None,
    allow_changes=False,
)


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A segmentor with connectors, automatic weights, explanations, memories and a self-teacher."""
    teacher = stock_models.pspnet(16, classes=len(SEG_CLASSES))
    file = save_weights(teacher, tmp_path_factory.mktemp('teacher') / 'teacher.pth')
    terms = dict(
        scores=dict(
            tap='decode_head.conv_seg',
            loss=stock_models.cwd(tau=4, loss_weight='auto'),
            schedule=dict(start=1),
        ),
        features=dict(tap='decode_head.bottleneck', loss=stock_models.cwd(tau=2, loss_weight=5)),
        late=dict(tap='backbone[3]', loss=stock_models.cwd(), schedule=dict(start=1, stop=3)),
        explain=dict(
            tap='decode_head.bottleneck',
            explainer=dict(
                type='mmkd_plugin.GradCAM', scores='decode_head.conv_seg', max_classes=2
            ),
            loss=dict(type='mmkd_plugin.ExplanationLoss'),
        ),
        memory=dict(
            tap='decode_head.bottleneck',
            loss=dict(type='mmkd_plugin.TokenRelationLoss', queue=7),
            connector=dict(type='mmkd_plugin.ConvConnector'),
        ),
    )
    return dict(
        _scope_='mmseg',
        type='mmkd_plugin.Distiller',
        student=stock_models.pspnet(classes=len(SEG_CLASSES)),
        teacher=[
            dict(name='teacher', config=teacher, checkpoint=file),
            dict(
                type='mmkd_plugin.SelfTeacher',
                name='me',
                tap='backbone',
                neck=dict(type='mmkd_plugin.BiFPNSelfTeacher', width=1),
            ),
        ],
        distill={name: dict(term, teacher='teacher') for name, term in terms.items()},
        task=dict(schedule=dict(start=1)),
    )


def settings(model: dict, data: Path, folder: Path, **changes: Any) -> Config:
    """A run of four iterations with clipped gradients, each process with a seed of its own."""
    wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
        clip_grad=dict(max_norm=1.0),
    )
    options = dict(
        optim_wrapper=wrapper, save_every=2, randomness=dict(seed=0, diff_rank_seed=True)
    )
    return config(model, data, folder, 4, **options | changes)


class Look(Hook):
    """Notes a weight in each validation."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        model = getattr(runner.model, 'module', runner.model)
        self.weights.append(dict(model.named_parameters())[WEIGHT].detach().clone())


def train_and_note(rank: int, cfg: Config) -> None:
    """Trains, and saves what this process has logged and holds."""
    record, look = Record(), Look()
    runner = train(cfg, record, look, resumable=True)
    scalars = runner.message_hub.log_scalars
    held = [
        (value.to_local() if hasattr(value, 'to_local') else value).numel()
        for state in runner.optim_wrapper.optimizer.state.values()
        for value in state.values()
        if value.dim()
    ]
    seen = dict(
        losses=record.losses,
        start={key.removeprefix('module.'): x for key, x in record.start.items()},
        norms=scalars['train/grad_norm'].data[0].tolist() if 'train/grad_norm' in scalars else None,
        validated=look.weights,
        held=sum(held),
        kind=type(runner.model).__name__,
    )
    torch.save(seen, Path(cfg.work_dir, f'rank{rank}.pt'))


def trained(cfg: Config) -> list[dict[str, Any]]:
    """What each of two processes saw, and the checkpoints of their run."""
    ddp.in_two_processes(train_and_note, cfg)
    return [torch.load(Path(cfg.work_dir, f'rank{rank}.pt')) for rank in (0, 1)]


def saved(cfg: Config, iteration: int) -> dict[str, Any]:
    return read_checkpoint(Path(cfg.work_dir, f'iter_{iteration}.pth'))


def learnt(checkpoint: dict) -> dict[str, Any]:
    """All that a checkpoint holds of what was trained."""
    state = checkpoint['state_dict']
    optimizer = checkpoint['optimizer']
    return dict(
        student=dict(state),
        beside=dict(distillation_state(state)['state']),
        optimizer={str(number): held for number, held in optimizer['state'].items()},
        gradients=dict(checkpoint.get('mmkd_gradients', {})),
    )


def assert_close(ours: Any, theirs: Any, where: str = '') -> None:
    """Compares nested dicts and lists, to the rounding of sums over processes."""
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), where
        for key, value in ours.items():
            assert_close(value, theirs[key], f'{where}/{key}')
    elif isinstance(ours, list):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_close(one, other, f'{where}/{number}')
    else:
        ours, theirs = torch.as_tensor(ours).double(), torch.as_tensor(theirs).double()
        error = (ours - theirs).abs().max().item()
        assert error <= 1e-2 * theirs.abs().max().item() + 1e-5, f'{where}: {error}'


@pytest.fixture(scope='module')
def both(model: dict, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same run with DDP and with split weights: the configs, and what both processes saw."""
    folder = tmp_path_factory.mktemp('both')
    every = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=2)
    runs = dict(
        ddp=validated(settings(model, data, folder / 'ddp', train_cfg=every), data),
        sharded=validated(settings(model, data, folder / 'sh', train_cfg=every, **SHARDED), data),
    )
    return {name: (cfg, trained(cfg)) for name, cfg in runs.items()}


def test_it_learns_what_ddp_learns(both: dict[str, Any]) -> None:
    (with_ddp, theirs), (sharded, ours) = both['ddp'], both['sharded']
    for one, other in zip(ours, theirs, strict=True):
        assert one['kind'] != other['kind']
        assert_same(one['start'], other['start'])
        assert [list(line) for line in one['losses']] == [list(line) for line in other['losses']]
        for key in ('losses', 'norms'):
            assert_close(one[key], other[key])
    assert_close(learnt(saved(sharded, 4)), learnt(saved(with_ddp, 4)))


def test_validation_sees_the_weights_that_are_saved(both: dict[str, Any]) -> None:
    sharded, seen = both['sharded']
    expected = [saved(sharded, at)['state_dict'][WEIGHT] for at in (2, 4)]
    for one in seen:
        assert_same(one['validated'], expected)


def test_each_process_holds_a_part(both: dict[str, Any]) -> None:
    whole = both['ddp'][1][0]['held']
    parts = [one['held'] for one in both['sharded'][1]]
    assert sum(parts) == whole and max(parts) < 0.6 * whole


def test_a_stock_student_loads_what_is_saved(both: dict[str, Any]) -> None:
    state = saved(both['sharded'][0], 4)['state_dict']
    student = stock_models.build(stock_models.pspnet(classes=len(SEG_CLASSES)))
    student.load_state_dict(state, strict=True)
    assert all(type(value) is torch.Tensor for value in state.values())


def resumed(cfg: Config, file: Path, folder: Path) -> Config:
    """The config of a run that goes on from a checkpoint; it is trained."""
    again = Config(cfg.to_dict() | dict(work_dir=str(folder)))
    again.load_from, again.resume = str(file), True
    trained(again)
    return again


@pytest.mark.parametrize(
    ('first', 'then'), [('ddp', 'ddp'), ('ddp', 'sharded'), ('sharded', 'ddp')]
)
def test_each_goes_on_from_a_checkpoint_of_the_other(
    first: str, then: str, both: dict[str, Any], tmp_path: Path
) -> None:
    before = both[first][0]
    cfg = resumed(both[then][0], Path(before.work_dir, 'iter_2.pth'), tmp_path)
    compare = assert_same if first == then else assert_close
    compare(learnt(saved(cfg, 4)), learnt(saved(before, 4)))


def test_a_resumed_run_is_the_same_bit_for_bit(model: dict, data: Path, tmp_path: Path) -> None:
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01))
    cfg = settings(model, data, tmp_path / 'once', optim_wrapper=wrapper, **SHARDED)
    trained(cfg)
    again = resumed(cfg, tmp_path / 'once/iter_2.pth', tmp_path / 'again')
    assert_same(learnt(saved(again, 4)), learnt(saved(cfg, 4)))


def test_gradients_that_wait_for_a_step_travel_along(
    model: dict, data: Path, tmp_path: Path
) -> None:
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01), accumulative_counts=3)
    runs = dict(ddp={}, sharded=SHARDED)
    cfgs = {
        name: settings(model, data, tmp_path / name, optim_wrapper=wrapper, **changes)
        for name, changes in runs.items()
    }
    for cfg in cfgs.values():
        trained(cfg)
    ours, theirs = (learnt(saved(cfgs[name], 2)) for name in ('sharded', 'ddp'))
    assert ours['gradients']
    assert_close(ours, theirs)
    again = resumed(cfgs['sharded'], tmp_path / 'sharded/iter_2.pth', tmp_path / 'again')
    assert_close(learnt(saved(again, 4)), learnt(saved(cfgs['sharded'], 4)))


def test_the_tool_ends_with_a_report(model: dict, data: Path, tmp_path: Path) -> None:
    cfg = validated(settings(model, data, tmp_path / 'run', **SHARDED), data)
    cfg.train_cfg.val_interval = 2
    cfg.default_hooks.visualization = dict(type='mmkd_plugin.DistillVisualizationHook', interval=1)
    cfg = Config(cfg.to_dict() | {k: v for k, v in ddp.DISTRIBUTED.items() if 'wrapper' not in k})

    def work(rank: int) -> int:
        training.train(cfg, TYPED, Cores.now())
        return rank

    ddp.forked(work, tmp_path)
    report = (tmp_path / 'run/report.html').read_text()
    assert 'of the pixels' in report
    assert list((tmp_path / 'run').glob('2*/report/*.jpg'))
    assert list((tmp_path / 'run').glob('2*/vis_data/vis_image/distill-*'))


class Break(Hook):
    """Breaks a weight before the second step."""

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == 1:
            weight = runner.model.student.decode_head.conv_seg.weight
            weight.data.mul_(float('nan'))


def test_a_step_that_fails_can_be_run_again(
    model: dict, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    HOOKS.register_module(module=Break, force=True)
    model = copy.deepcopy(model)
    del model['distill']['memory']  # the rows of both processes enter it
    hooks = [dict(type='mmkd_plugin.Break')]
    cfg = settings(model, data, tmp_path / 'run', custom_hooks=hooks, **SHARDED)
    cfg = Config(cfg.to_dict() | {k: v for k, v in ddp.DISTRIBUTED.items() if 'wrapper' not in k})

    def work(rank: int) -> str:
        try:
            training.train(cfg, TYPED, Cores.now())
        except NotFiniteError as error:
            return str(error)
        return 'nothing went wrong'

    assert all('finite' in found for found in ddp.forked(work, tmp_path))
    training.replay(str(tmp_path / 'run/nan_1'))
    assert 'All losses are the same, bit for bit.' in capsys.readouterr().out


@needs_ops
def test_a_detector_learns_what_ddp_learns(data: Path, tmp_path: Path) -> None:
    student, teacher = (stock_models.retinanet(w, classes=len(DET_CLASSES)) for w in (8, 16))
    model = dict(
        _scope_='mmdet',
        type='mmkd_plugin.Distiller',
        student=student,
        teacher=dict(config=teacher, checkpoint=save_weights(teacher, tmp_path / 'teacher.pth')),
        distill=dict(neck=dict(tap='neck', loss=stock_models.cwd())),
    )
    cfgs = [settings(model, data, tmp_path / n, **s) for n, s in (('d', {}), ('s', SHARDED))]
    for cfg in cfgs:
        trained(cfg)
    assert_close(*(learnt(saved(cfg, 4)) for cfg in cfgs))


@needs_ops
def test_single_numbers_are_told(data: Path, tmp_path: Path) -> None:
    student = stock_models.fcos(classes=len(DET_CLASSES))

    def build(rank: int) -> str:
        cfg = settings(student, data, tmp_path, launcher='pytorch', **SHARDED)
        with pytest.raises(ValueError, match='') as info:
            build_runner(cfg)
        return str(info.value)

    for found in ddp.forked(build, tmp_path):
        assert re.search(
            r'^runner_type=.*: bbox_head\.scales\.0\.scale.* are single numbers', found
        )


def test_in_one_process_it_is_a_plain_runner(model: dict, data: Path, tmp_path: Path) -> None:
    cfg, plain = (
        settings(model, data, tmp_path / name, **changes)
        for name, changes in (('sharded', SHARDED), ('plain', {}))
    )
    runner = train(cfg)
    assert type(runner) is ShardedRunner and type(train(plain)) is Runner
    assert_same(learnt(saved(cfg, 4)), learnt(saved(plain, 4)))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(model_wrapper_cfg=dict(type='X')), r'^model_wrapper_cfg: ShardedRunner wraps no'),
        (dict(custom_hooks=[dict(type='EMAHook')]), r'^custom_hooks: EMAHook copies the model'),
        (
            dict(torch='2.8.0'),
            r'^runner_type=ShardedRunner needs torch 2\.10 or later, and this is 2\.8',
        ),
    ],
)
def test_what_cannot_be_split_is_told(
    changes: dict, message: str, model: dict, data: Path, tmp_path: Path
) -> None:
    def build(rank: int) -> str:
        cfg = settings(model, data, tmp_path, **SHARDED)
        cfg.merge_from_dict(changes)
        cfg.launcher = 'pytorch'
        torch.__version__ = cfg.pop('torch', torch.__version__)
        try:
            build_runner(cfg)
        except ValueError as error:
            return str(error)
        return 'nothing was refused'

    for found in ddp.forked(build, tmp_path):
        assert re.search(message, found), found
