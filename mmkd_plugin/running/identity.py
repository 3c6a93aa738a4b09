"""The identity of a run: a checkpoint says which run it is of, and a resumed run is compared."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmkd_plugin.checkpoint import CheckpointError
from mmkd_plugin.running.kinds import told, unlike
from mmkd_plugin.words import short, some

#: Where `meta` of a checkpoint has the identity of its run.
IDENTITY = 'mmkd_run'

#: What messages call how many processes a run has, each with a batch of its own.
PROCESSES = 'number of processes'

#: What of a config makes a run.
COMPARED = (
    'model',
    'train_dataloader',
    'train_cfg',
    'optim_wrapper',
    'param_scheduler',
    'auto_scale_lr',
    'randomness',
)
#: What may change on the way.
MAY_CHANGE = (
    'train_cfg',
    'train_dataloader.batch_size',
    'train_dataloader.num_workers',
    'train_dataloader.persistent_workers',
    'train_dataloader.pin_memory',
    'train_dataloader.prefetch_factor',
    'optim_wrapper.accumulative_counts',
    'optim_wrapper.clip_grad',
    'optim_wrapper.loss_scale',
    'optim_wrapper.type',
    PROCESSES,
)
#: What the state in a checkpoint overrides.
RESTORED = ('optim_wrapper.optimizer', 'optim_wrapper.paramwise_cfg', 'param_scheduler')
#: What is a path of this machine, and comes back with the state.
LEFT_OUT = ('teacher_connector.checkpoint',)

#: What else makes a run, and cannot be seen in its config.
FINGERPRINTS = ('teachers', 'configs_of_teachers', 'data')

#: Of about how many images the names are kept.
NAMED = 16

#: Settings by which optimizers are told apart, and their state of the size of a parameter.
KINDS = frozenset({'alpha', 'betas', 'etas', 'lambd', 'lr_decay', 'momentum', 'rho'})
MOMENTS = ('momentum_buffer', 'exp_avg', 'exp_avg_sq')


class Difference(NamedTuple):
    """A setting that two runs do not share, as text.

    Args:
        key (str): Its dotted key.
        old (str): Its value in the first run.
        new (str): Its value in the second.
    """

    key: str
    old: str
    new: str

    def __str__(self) -> str:
        return f'{self.key}: {self.old} → {self.new}'


def plain(value: Any) -> Any:
    """A config as dicts, lists, texts and numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if value is None or isinstance(value, (bool, float, int, str)):
        return value
    kind = value if isinstance(value, type) else type(value)
    return f'{kind.__module__}.{kind.__qualname__}'


_NOTHING = object()


def differences(old: Any, new: Any, key: str = '') -> Iterator[Difference]:
    """Compares two configs.

    Args:
        old (Any): What :func:`plain` returned for the first.
        new (Any): What it returned for the second.
        key (str): Where they lie. Defaults to the top.

    Yields:
        Difference: A difference, and the next.

    Examples:
        >>> [str(one) for one in differences(dict(a=dict(b=1)), dict(a=dict(b=2)))]
        ['a.b: 1 → 2']
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys((*old, *new)):
            inside = f'{key}.{name}'.lstrip('.')
            yield from differences(old.get(name, _NOTHING), new.get(name, _NOTHING), inside)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        if any(isinstance(one, (list, Mapping)) for one in (*old, *new)):
            for number, pair in enumerate(zip(old, new)):
                yield from differences(*pair, f'{key}.{number}')
        elif _differ(old, new):
            yield Difference(key, _text(old), _text(new))
    elif _differ(old, new) and not key.endswith(LEFT_OUT):
        yield Difference(key, _text(old), _text(new))


def _differ(old: Any, new: Any) -> bool:
    """Whether two values are not equal; a tensor, which :func:`plain` never gives, is no value."""
    return isinstance(old, Tensor) or isinstance(new, Tensor) or old != new


def _any_differ(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return any(_differ(old.get(key, _NOTHING), new.get(key, _NOTHING)) for key in {*old, *new})


def _text(value: Any) -> str:
    if isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        return f'[{some((str(v.get("type", "...")) for v in value if isinstance(v, Mapping)), 8)}]'
    return 'not there' if value is _NOTHING else short(value, limit=60)


class SameRun(Hook):
    """Keeps the identity of a run in its checkpoints, and compares it on ``--resume``.

    Another run is refused: another teacher, loss, student, data set or class, or a model or an
    optimizer that cannot take the state. What may change on the way is named.

    Args:
        runner (Runner): The runner.
        allow_changes (bool): Whether a run that is another one may go on, as far as the state fits.
            Defaults to False.
    """

    priority = 'HIGHEST'

    def __init__(self, runner: Runner, allow_changes: bool = False) -> None:
        self._runner = runner
        self._allow_changes = allow_changes

    @property
    def model(self) -> nn.Module:
        """The model without what distributes it."""
        model = self._runner.model
        return model.module if is_model_wrapper(model) else model

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The config of the run, hashes of its teachers, what its data set holds, and so on."""
        cfg = self._runner.cfg
        teachers = getattr(self.model, 'teachers', {})
        trained = [name for name, one in self.model.named_parameters() if one.requires_grad]
        config = {key: plain(cfg.get(key)) for key in COMPARED if cfg.get(key) is not None}
        randomness = config.get('randomness', {})
        # mmengine draws the seed of a run that has none, and may add the number of the process.
        of_process = get_rank() if randomness.get('diff_rank_seed') else 0
        config['randomness'] = {**randomness, 'seed': self._runner.seed - of_process}
        return dict(
            config=config,
            teachers={name: teacher.weights_hash() for name, teacher in teachers.items()},
            configs_of_teachers={name: one.config_hash() for name, one in teachers.items()},
            data=self._data(),
            trained=trained,
            processes=get_world_size(),
        )

    def _data(self) -> dict[str, Any]:
        """How many images the training set has, some of their names, and its classes."""
        dataset = getattr(self._runner.train_dataloader, 'dataset', None)
        try:
            count = len(dataset)
        except TypeError:  # a stream has no length
            count = None
        classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
        return dict(
            images=count,
            files=_some_names(dataset, count or 0),
            classes=None if classes is None else list(map(str, classes)),
        )

    def before_train(self, runner: Runner) -> None:
        if is_main_process():
            _ = self.identity  # while the files of the teachers are there

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint['meta'][IDENTITY] = self.identity
        for state in _states_of(checkpoint.get('param_schedulers', [])):
            # OneCycleLR keeps a function, which a safe load refuses; each run makes its own.
            for key in [key for key, value in state.items() if callable(value)]:
                del state[key]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if not runner._resume:
            return
        saved = checkpoint['meta'].get(IDENTITY)
        found = self._differences(saved) if isinstance(saved, Mapping) else []
        reasons = [
            *self._unfit_weights(checkpoint),
            *self._unfit_optimizer(checkpoint, saved),
            *self._unfit_schedules(checkpoint),
        ]
        path = runner._load_from
        if reasons:
            changed = f' What has changed in the config: {some(map(str, found), 5, "; ")}.'
            raise CheckpointError(
                f'--resume: this run cannot go on from {path}: {some(reasons, 3, "; ")}.'
                f'{changed if found else ""} Take the config of that run, or start from its '
                f'weights with --cfg-options load_from={path}'
            )
        other = _told(found, path)
        if other and not self._allow_changes:
            raise CheckpointError(
                f'--resume: this run is not the run of {path}: {some(map(str, other), 5, "; ")}. '
                'Take the config, the data and the teachers of that run; or go on with the changed '
                'ones by --allow-changes; or start from its weights with --cfg-options '
                f'load_from={path}'
            )
        if other and is_main_process():
            _log('this run is not the run of {path}', other, path, logging.WARNING)

    def _differences(self, saved: Mapping[str, Any]) -> list[Difference]:
        ours = self.identity
        found = list(differences(saved.get('config') or {}, ours['config']))
        teachers, configs, data = (
            [(saved[key], ours[key]) for key in (one,) if isinstance(saved.get(one), Mapping)]
            for one in FINGERPRINTS
        )
        if not any(_any_differ(*pair) for pair in teachers):  # wherever their files lie
            found = [one for one in found if not _is_file_of_a_teacher(one.key)]
        if configs and not any(_any_differ(*pair) for pair in configs):
            found = [one for one in found if not _is_config_of_a_teacher(one.key)]
        if data and not any(_any_differ(*pair) for pair in data):
            found = [one for one in found if not _is_path_of_data(one.key)]
        for of, pairs in (('weights', teachers), ('config', configs)):
            for before, now in pairs:
                for name in [n for n in now if n in before and _differ(before[n], now[n])]:
                    old, new = (str(value)[:8] for value in (before[name], now[name]))
                    found.append(Difference(f"{of} of teacher '{name}'", old, new))
        for before, now in data:
            found += differences(before, now, 'training data')
        if 'processes' in saved:
            found += differences(saved['processes'], ours['processes'], PROCESSES)
        return found

    def _unfit_weights(self, checkpoint: Mapping[str, Any]) -> Iterator[str]:
        expected, given = self.model.state_dict(), checkpoint.get('state_dict') or {}
        for key, value in expected.items():
            if key not in given:
                yield f'{key} is not in it'
            elif given[key].shape != value.shape:
                yield f'{key} is {tuple(given[key].shape)} in it, and {tuple(value.shape)} here'
        yield from (f'{key} of it is not in this model' for key in given if key not in expected)

    def _unfit_optimizer(self, checkpoint: Mapping[str, Any], saved: Any) -> Iterator[str]:
        state, ours = checkpoint.get('optimizer') or {}, self._runner.optim_wrapper.state_dict()
        if 'param_groups' not in state or 'param_groups' not in ours:
            return
        old, new = state['param_groups'], ours['param_groups']
        counts = [[len(group['params']) for group in groups] for groups in (old, new)]
        if counts[0] != counts[1]:
            yield self._other_parameters(*map(sum, counts), saved)
            return
        kinds = [KINDS.intersection(*groups[:1]) for groups in (old, new)]
        if kinds[0] != kinds[1]:
            names = [', '.join(sorted(kind)) or 'nothing of the kind' for kind in kinds]
            yield f'its optimizer has {names[0]}, and the one of this run {names[1]}'
            return
        yield from unlike(old, new, 'optimizer.param_groups')
        yield from self._other_shapes(state.get('state') or {}, new)

    def _unfit_schedules(self, checkpoint: Mapping[str, Any]) -> Iterator[str]:
        saved, ours = checkpoint.get('param_schedulers', []), self._runner.param_schedulers or []
        if isinstance(saved, Mapping) is not isinstance(ours, Mapping):
            yield 'its schedules are not for the optimizers of this run'
            return
        for name in ours if isinstance(ours, Mapping) else ['']:
            states = saved.get(name, []) if name else saved
            schedulers, here = ours[name] if name else ours, f'param_schedulers.{name}'.rstrip('.')
            yield from unlike(states, [one.state_dict() for one in schedulers], here)
            for number, (state, one) in enumerate(zip(states, schedulers)):
                changes = state.get('param_name', one.param_name)
                if changes not in one.optimizer.param_groups[0]:
                    yield f'{here}.{number}.param_name is {told(changes)}'
                yield from _unfit_counts(state, one.state_dict(), f'{here}.{number}')

    def _other_parameters(self, old: int, new: int, saved: Any) -> str:
        then = saved.get('trained') if isinstance(saved, Mapping) else None
        now = self.identity['trained']
        changed = []
        if then is not None:
            more = [name for name in now if name not in set(then)]
            less = [name for name in then if name not in set(now)]
            changed += [f'new: {some(more, 3)}'] * bool(more)
            changed += [f'gone: {some(less, 3)}'] * bool(less)
        names = f' ({", ".join(changed)})' if changed else ''
        return f'it trained {old} parameters, and this run trains {new}{names}'

    def _other_shapes(
        self, state: Mapping[int, Any], groups: Sequence[Mapping[str, Any]]
    ) -> Iterator[str]:
        names = {id(value): name for name, value in self.model.named_parameters()}
        live = self._runner.optim_wrapper.param_groups
        for group, numbered in zip(live, groups):
            for parameter, number in zip(group['params'], numbered['params']):
                held = state.get(number) or {}
                for key in MOMENTS:
                    value = held.get(key)
                    if isinstance(value, Tensor) and value.shape != parameter.shape:
                        yield (
                            f'the {key} of {names.get(id(parameter), "a parameter")} is '
                            f'{tuple(value.shape)} in it, and {tuple(parameter.shape)} is needed'
                        )
                        break


def _states_of(schedules: Any) -> list[dict[str, Any]]:
    """The states of schedules, those of several optimizers one after the other."""
    several = schedules.values() if isinstance(schedules, Mapping) else [schedules]
    return [state for states in several for state in states]


def _unfit_counts(state: Mapping[str, Any], fresh: Mapping[str, Any], where: str) -> Iterator[str]:
    # `last_step` is -1 until a schedule begins, and until one that waits for a score gets it.
    for key, least in (('_global_step', fresh.get('_global_step', 0)), ('last_step', -1)):
        if isinstance(state.get(key), int) and state[key] < least:
            yield f'{where}.{key} is {state[key]}'


def _is_file_of_a_teacher(key: str) -> bool:
    return key.startswith('model.teacher') and key.endswith(('.checkpoint', '.path'))


def _is_config_of_a_teacher(key: str) -> bool:
    return key.startswith('model.teacher') and key.endswith('.config')


def _is_path_of_data(key: str) -> bool:
    return key.startswith('train_dataloader.') and (
        key.endswith(('.data_root', '.ann_file', '.root', '.path')) or '.data_prefix.' in key
    )


def _some_names(dataset: Any, count: int) -> list[str]:
    """The names of some images of a data set, without their folders."""
    ask = getattr(dataset, 'get_data_info', None)
    if ask is None:
        return []
    found = [ask(number) for number in range(0, count, max(count // NAMED, 1))]
    paths = [one.get('img_path') for one in found if isinstance(one, Mapping)]
    return [Path(path).name for path in paths if isinstance(path, str)]


def _below(key: str, prefixes: Sequence[str]) -> bool:
    return any(key == prefix or key.startswith(f'{prefix}.') for prefix in prefixes)


def _told(found: Sequence[Difference], path: str) -> list[Difference]:
    """Says what has changed as it may; returns the differences that make another run."""
    kind = 'optim_wrapper.optimizer.type'
    restored = [one for one in found if _below(one.key, RESTORED) and one.key != kind]
    changed = [one for one in found if _below(one.key, MAY_CHANGE)]
    if is_main_process():
        _log(
            'optimizer and schedules go on with the state in {path}, so these changes have no '
            'effect (--cfg-options load_from={path} starts anew from its weights)',
            restored,
            path,
            logging.WARNING,
        )
        _log('changed since {path}', changed, path, logging.INFO)
    return [one for one in found if one not in restored and one not in changed]


def _log(text: str, those: Sequence[Difference], path: str, level: int) -> None:
    if those:
        print_log(
            f'--resume: {text.format(path=path)}: {some(map(str, those), 5, "; ")}',
            logger='current',
            level=level,
        )
