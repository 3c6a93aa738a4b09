"""The student's own names, whatever way somebody asks a Distiller for them."""

from __future__ import annotations

import copy
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import ExponentialMovingAverage, revert_sync_batchnorm
from mmengine.model.utils import convert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mmkd_plugin.checkpoint import distillation_state, read_checkpoint
from tests import ddp, stock_models
from tests.runs import (
    DET_CLASSES,
    SEG_CLASSES,
    assert_same,
    config,
    dataset_of,
    needs_ops,
    save_weights,
    train,
)
from tests.stock_models import build, cwd, distiller

WAYS = ('named_modules', 'named_children', 'named_parameters', 'named_buffers')


def with_norms() -> nn.Module:
    """A Distiller whose term has a convolution with a batch norm."""
    term = dict(
        tap='decode_head.bottleneck',
        loss=cwd(),
        connector=dict(type='mmkd_plugin.ConvConnector', norm=True),
    )
    return distiller(stock_models.pspnet(), stock_models.pspnet(16), dict(cwd=term))


def alone() -> nn.Module:
    return build(stock_models.pspnet())


class Rooted(nn.Module):
    """Something around a model, as DDP is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


# Asking -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('way', WAYS)
def test_the_students_names_come_first_and_the_rest_lies_beside_them(way):
    model, student = with_norms(), alone()
    names = [name for name, _ in getattr(model, way)()]
    theirs = [name for name, _ in getattr(student, way)()]
    assert names[: len(theirs)] == theirs
    assert len(set(names)) == len(names)
    beside = {name.split('.')[0] for name in names[len(theirs) :]}
    assert beside <= {'distill', 'self_teachers'} and 'distill' in beside


@pytest.mark.parametrize('way', [way for way in WAYS if way != 'named_children'])
@pytest.mark.parametrize('remove_duplicate', [True, False])
def test_names_are_the_same_below_another_module(way, remove_duplicate):
    model = with_norms()
    ask = lambda m, **k: list(getattr(m, way)(remove_duplicate=remove_duplicate, **k))  # noqa: E731
    inside = [(n, v) for n, v in ask(Rooted(model)) if n.startswith('module')]
    assert inside == [(f'module.{n}'.rstrip('.'), v) for n, v in ask(model)]
    if not remove_duplicate:
        student = [name for name, _ in ask(alone())]
        assert [name for name, _ in ask(model)][: len(student)] == student
    assert ask(model, prefix='module') == inside


def test_every_name_leads_to_what_it_names():
    model = with_norms()
    assert all(model.get_submodule(name) is module for name, module in model.named_modules())
    assert all(model.get_parameter(name) is value for name, value in model.named_parameters())
    assert all(model.get_buffer(name) is value for name, value in model.named_buffers())
    assert all(getattr(model, name) is module for name, module in model.named_children())
    state = model.state_dict()
    assert {n for n, _ in model.named_parameters() if not n.startswith('distill')} <= set(state)
    beside = distillation_state(state)['state']
    assert {n for n, _ in model.named_parameters() if n.startswith('distill')} <= set(beside)


def test_members_of_the_student_itself_are_among_them():
    model = with_norms()
    model.student.scale = nn.Parameter(torch.ones(1))
    model.student.register_buffer('offset', torch.zeros(1))
    for names in (model.named_parameters(), model.named_parameters(recurse=False)):
        assert dict(names)['scale'] is model.student.scale
    for names in (model.named_buffers(), model.named_buffers(recurse=False)):
        assert dict(names)['offset'] is model.student.offset
    assert len(list(model.parameters(recurse=False))) == 1
    walked = [
        f'{name}.{key}'.lstrip('.')
        for name, module in model.named_modules()
        for key, _ in module.named_parameters(recurse=False)
    ]
    assert Counter(walked) == Counter(name for name, _ in model.named_parameters())


def test_each_module_is_seen_once_and_the_student_too():
    model = with_norms()
    seen, applied = list(model.modules()), []
    assert len(set(seen)) == len(seen)
    assert set(seen) == {*model.student.modules(), *model.distill.modules(), model, *others(model)}
    model.apply(applied.append)
    assert Counter(map(id, applied)) == Counter(map(id, seen))
    assert {module for _, module in model.named_modules()} == set(seen) - {model.student}


def others(model: nn.Module) -> list[nn.Module]:
    return [model.self_teachers]


def test_training_mode_reaches_the_student_itself():
    model, calls = with_norms(), []

    class Watching(type(model.student)):
        def train(self, mode: bool = True) -> nn.Module:
            calls.append(mode)
            return super().train(mode)

    model.student.__class__ = Watching
    for mode in (False, True):
        assert model.train(mode) is model
        assert all(module.training is mode for module in model.modules())
    assert calls == [False, True]


# Setting ------------------------------------------------------------------------------------------


def test_what_is_set_by_a_students_name_is_set_in_the_student():
    model = with_norms()
    head, term = copy.deepcopy(model.decode_head), model.distill
    model.decode_head = head
    model.test_cfg = dict(mode='slide')
    model.of_the_run = 1
    assert model.student.decode_head is head and model.student.test_cfg == dict(mode='slide')
    assert not hasattr(model.student, 'of_the_run') and model.distill is term
    del model.decode_head
    assert 'decode_head' not in dict(model.student.named_children())


@pytest.mark.parametrize('convert', [nn.SyncBatchNorm.convert_sync_batchnorm, None])
def test_batch_norms_are_converted_in_place(convert):
    model = with_norms()
    keys, names = list(model.state_dict()), [name for name, _ in model.named_modules()]
    if convert is None:
        convert_sync_batchnorm(model)
    else:
        convert(model)
    assert isinstance(model.student.backbone.layer1[0].bn1, nn.SyncBatchNorm)
    revert_sync_batchnorm(model)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_modules()] == names


# Loading ------------------------------------------------------------------------------------------


def norms_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """States of the batch norms by the names of modules, as hooks collect them."""
    return {
        f'{name}.{key}': value.clone()
        for name, module in model.named_modules()
        if isinstance(module, _NormBase)
        for key, value in module.state_dict().items()
    }


@pytest.mark.parametrize('wrap', [lambda m: m, Rooted, ExponentialMovingAverage])
def test_norms_that_are_taken_by_names_are_loaded_by_them(wrap: Callable):
    model = wrap(with_norms())
    states = {key: torch.rand_like(v.float()).to(v) for key, v in norms_of(model).items()}
    assert any('distill.cwd' in key for key in states)
    found = model.load_state_dict(states, strict=False)
    assert not found.unexpected_keys
    assert not any('student.' in key for key in found.missing_keys)
    assert set(found.missing_keys) == set(model.state_dict()) - set(states)
    assert_same(norms_of(model), states)


@pytest.mark.parametrize('load', [lambda m, s: m.load_state_dict(s, strict=True),
                                  lambda m, s: load_state_dict(m, s, strict=True)])  # fmt: skip
def test_all_states_by_the_names_of_modules_load_strictly(load: Callable):
    model, other = with_norms(), with_norms()
    states = {
        f'{name}.{key}': torch.rand_like(value.float()).to(value)
        for name, module in other.named_modules()
        if name
        for key, value in module.state_dict().items()
    }
    load(model, states)
    assert set(states) > set(model.state_dict())
    beside = distillation_state(model.state_dict())['state']
    ours = {**model.state_dict(), **beside}
    assert_same(dict(sorted(ours.items())), dict(sorted(states.items())))


def test_one_part_of_the_student_can_be_loaded_by_its_name():
    model = with_norms()
    model.load_state_dict(
        {'backbone.layer1.0.bn1.running_mean': torch.full((8,), 3.0)}, strict=False
    )
    assert (model.backbone.layer1[0].bn1.running_mean == 3).all()


def test_messages_name_the_keys_as_the_file_does():
    model = with_norms()
    state = {k: v for k, v in model.state_dict().items() if 'bn1' not in k}
    state |= {'decode_head.conv_seg.weight': torch.zeros(1), 'backbone.no_such': torch.zeros(1)}
    with pytest.raises(RuntimeError) as caught:
        Rooted(model).load_state_dict({f'module.{k}': v for k, v in state.items()})
    text = str(caught.value)
    for name in ('"module.backbone.layer1.0.bn1.weight"', 'for module.decode_head.conv_seg.weight',
                 '"module.backbone.no_such"'):  # fmt: skip
        assert name in text
    assert 'student.' not in text


def test_a_whole_model_is_pickled_and_copied():
    model, file = with_norms(), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (torch.load(file, weights_only=False), copy.deepcopy(model)):
        assert [n for n, _ in other.named_modules()] == [n for n, _ in model.named_modules()]
        assert_same(dict(other.named_parameters()), dict(model.named_parameters()))
        other.decode_head = head = copy.deepcopy(other.decode_head)
        assert other.student.decode_head is head is not model.student.decode_head


# Optimizers ---------------------------------------------------------------------------------------


def groups_of(model: nn.Module, **settings: Any) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter, by name."""
    optimizer = dict(type='AdamW', lr=1.0, weight_decay=1.0)
    wrapper = build_optim_wrapper(model, dict(optimizer=optimizer, **settings))
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = wrapper.optimizer.param_groups
    found = [
        (names[parameter], (group['lr'], group['weight_decay']))
        for group in groups
        for parameter in group['params']
    ]
    assert len(found) == len(dict(found)) == len(names)
    return dict(found)


@pytest.mark.parametrize(
    'settings',
    [
        dict(paramwise_cfg=dict(custom_keys={'backbone.layer1': dict(lr_mult=0.1)})),
        dict(paramwise_cfg=dict(norm_decay_mult=0.0, bias_lr_mult=2.0)),
    ],
)
def test_constructors_of_optimizers_treat_the_student_as_alone(settings):
    model, student = with_norms(), alone()
    ours, theirs = groups_of(model, **settings), groups_of(student, **settings)
    assert len(set(theirs.values())) > 1
    assert {name: ours[name] for name in theirs} == theirs
    assert all(name.startswith('distill.') for name in ours.keys() - theirs.keys())


# Runs ---------------------------------------------------------------------------------------------


class NormsByName(Hook):
    """Takes the norms by the names of modules before each validation, and loads them back."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def before_val_epoch(self, runner: Any) -> None:
        states = norms_of(runner.model)
        assert not runner.model.load_state_dict(states, strict=False).unexpected_keys
        self.loaded.append(len(states))


def distilled(student: dict, teacher: dict, folder: Path, tap: str, scope: str = 'mmseg') -> dict:
    term = dict(tap=tap, loss=cwd(tau=2, loss_weight=5))
    checkpoint = save_weights(teacher, folder / 'teacher.pth')
    return dict(
        _scope_=scope,
        type='mmkd_plugin.Distiller',
        student=student,
        teacher=dict(config=teacher, checkpoint=checkpoint),
        distill=dict(cwd=term),
    )


def validation(scope: str, data: Path) -> dict[str, Any]:
    """The keys of a config that let a run validate once, at its end."""
    metric = dict(type='IoUMetric')
    if scope == 'mmdet':
        metric = dict(type='CocoMetric', ann_file=str(data / 'boxes.json'))
    dataset = dict(data_root=str(data), **dataset_of(scope))
    if scope == 'mmdet':
        keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
        dataset['pipeline'][-1]['meta_keys'] = keys
        resize = dict(type='Resize', scale=(64, 64), keep_ratio=True)
        dataset['pipeline'].insert(-1, resize)
    sampler = dict(type='DefaultSampler', shuffle=False)
    loader = dict(batch_size=1, num_workers=0, dataset=dataset, sampler=sampler)
    return dict(val_dataloader=loader, val_cfg=dict(type='ValLoop'), val_evaluator=metric)


def test_a_hook_that_loads_norms_by_name_works_in_a_run(data, tmp_path, own_globals):
    student, teacher = (stock_models.pspnet(w, classes=len(SEG_CLASSES)) for w in (8, 16))
    model = distilled(student, teacher, tmp_path, 'decode_head.bottleneck')
    hooks = [dict(type='EMAHook', momentum=0.1)]
    hook = NormsByName()
    cfg = config(model, data, tmp_path, 2, custom_hooks=hooks, **validation('mmseg', data))
    train(cfg, hook)
    assert hook.loaded == [len(norms_of(build(student)))]


class BeforeNorms(Hook):
    """Notes the norms before :class:`SyncNormHook` averages them."""

    priority = 'VERY_HIGH'

    def before_val_epoch(self, runner: Any) -> None:
        self.norms = norms_of(runner.model.module)


def train_yolox(rank: int, cfg: Config) -> None:
    """Trains, and saves the norms before and after they were averaged."""
    before = BeforeNorms()
    model = train(cfg, before).model.module
    seen = dict(before=before.norms, after=norms_of(model), all=dict(model.named_parameters()))
    torch.save(seen, Path(cfg.work_dir, f'rank{rank}.pt'))


@needs_ops
def test_yolox_averages_its_norms_over_two_processes(data, tmp_path):
    """The hooks are those of the stock config: mmdet's SyncNormHook and an average of weights."""
    student, teacher = (stock_models.yolox(width, len(DET_CLASSES)) for width in (32, 64))
    model = distilled(student, teacher, tmp_path, 'neck', 'mmdet')
    model['distill']['cwd']['connector'] = dict(type='mmkd_plugin.ConvConnector', norm=True)
    hooks = [
        dict(type='SyncNormHook', priority=48),
        dict(
            type='EMAHook',
            ema_type='ExpMomentumEMA',
            momentum=0.1,
            update_buffers=True,
            priority=49,
        ),
    ]
    wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='SGD', lr=0.001, weight_decay=0.0005),
        paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    )
    settings = dict(custom_hooks=hooks, optim_wrapper=wrapper, **validation('mmdet', data))
    seeds = dict(seed=0, diff_rank_seed=True)
    cfg = config(model, data, tmp_path, 1, by_epoch=True, randomness=seeds, **settings)
    ddp.in_two_processes(train_yolox, cfg)
    first, second = (torch.load(tmp_path / f'rank{rank}.pt') for rank in (0, 1))
    assert any('distill.cwd' in name for name in first['before'])
    own = [key for key in first['before'] if key.endswith('running_mean')]
    assert all(not torch.equal(first['before'][key], second['before'][key]) for key in own)
    for key in own:
        mean = (first['before'][key] + second['before'][key]) / 2
        torch.testing.assert_close(first['after'][key], mean)
    assert_same(first['after'], second['after'])
    assert_same(first['all'], second['all'])

    checkpoint = read_checkpoint(tmp_path / 'epoch_1.pth')
    keys = list(build(student).state_dict())
    assert sorted(checkpoint['state_dict']) == sorted(keys)
    averaged = [key for key in checkpoint['ema_state_dict'] if key != 'steps']
    assert sorted(averaged) == sorted(f'module.{key}' for key in keys)
