"""A step whose loss is not finite: kept in a folder with all that it takes to run it again.

Nothing is fetched from the device before that: a step keeps its batch, and copies of the few
buffers that the loss may read and the step changes.
"""

from __future__ import annotations

import copy
import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mmkd_plugin.annotations import fits
from mmkd_plugin.checkpoint import CheckpointError, read_data
from mmkd_plugin.foreign import is_ours
from mmkd_plugin.health import BrokenWeightsError, NotFiniteError
from mmkd_plugin.running.batches import packed, unpacked
from mmkd_plugin.running.identity import SameRun, plain
from mmkd_plugin.running.randomness import ITERATION, seed_with
from mmkd_plugin.saving import replacing, write_text
from mmkd_plugin.words import first_line, some

#: Folder of such a step in the work dir, and the files in it.
FOLDER, CONFIG, STEP, REPORT = 'nan_{}', 'config.py', 'step.pth', 'report.txt'
VERSION = 1


def file_of(rank: int, name: str = STEP) -> str:
    """The name of a file of a process."""
    return f'_{rank}.'.join(name.split('.')) if rank else name


def plain_losses(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """The losses of a step on the CPU; a list, as detectors give it for each level, is a vector."""
    values = {
        key: [one.detach().float().mean() for one in value]
        for key, value in losses.items()
        if not isinstance(value, Tensor)
    }
    stacked = {key: torch.stack(value).cpu() for key, value in values.items() if value}
    whole = {key: value.detach().cpu() for key, value in losses.items() if key not in values}
    return {**whole, **stacked}


class KeepStep(Hook):
    """Keeps what a step began with while it runs.

    Running statistics of batch norms are left out: in training no loss reads them.
    """

    priority = 'LOWEST'  # after all that changes the batch or the model

    def __init__(self) -> None:
        self.batch: Any = None
        self._before: dict[str, Tensor] = {}
        self._extra: dict[str, Any] = {}
        self._changing: list[tuple[str, nn.Module, str]] | None = None
        self._with_extra: list[tuple[str, nn.Module]] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self._changing is None:
            self._find(_unwrapped(runner.model))
        self.batch = data_batch
        self._before = {name: module._buffers[key].clone() for name, module, key in self._changing}
        self._extra = {name: module.get_extra_state() for name, module in self._with_extra}

    def after_train_iter(self, *_: Any, **__: Any) -> None:
        self.batch, self._before, self._extra = None, {}, {}

    def _find(self, model: nn.Module) -> None:
        self._changing = [
            (f'{name}.{key}', module, key)
            for name, module in _modules(model)
            if not isinstance(module, _NormBase)
            for key, value in module._buffers.items()
            if value is not None
        ]
        self._with_extra = [
            (name, module)
            for name, module in _modules(model)
            if type(module).get_extra_state is not nn.Module.get_extra_state
        ]

    def save(self, runner: Runner, error: NotFiniteError) -> Path | None:
        """Saves the step that has just failed.

        Args:
            runner (Runner): The runner.
            error (NotFiniteError): How it failed.

        Returns:
            Path | None: What ``--replay`` takes: the folder; in another process than the first its
            file there. None if it cannot be written.
        """
        folder, rank = Path(runner.work_dir, FOLDER.format(runner.iter)), get_rank()
        model = _unwrapped(runner.model)
        try:
            content = dict(
                version=VERSION,
                key=[runner.seed, ITERATION, runner.iter],
                rank=rank,
                processes=get_world_size(),
                device=str(next(model.parameters()).device),
                losses=plain_losses(error.losses),
                culprit=error.culprit,
                batch=packed(self.batch),
                parameters={name: value.cpu() for name, value in _parameters(model)},
                buffers={name: value.cpu() for name, value in _buffers(model)}
                | {name: value.cpu() for name, value in self._before.items()},
                extra=packed(self._extra),
                teachers=_teachers(runner),
                hub=_plain(runner.message_hub.runtime_info),
            )
            _remove_others(Path(runner.work_dir), folder)
            text = f'{error}\n\n' + ''.join(f'{one}\n' for one in error.findings)
            write_text(folder / file_of(rank, REPORT), text)
            write_text(folder / file_of(rank, CONFIG), runner.cfg.pretty_text)
            with replacing(folder / file_of(rank)) as (beside,), beside.open('wb') as file:
                torch.save(content, file)
        except Exception as problem:  # whatever it is, the error of the loss counts more
            print_log(
                f'The step could not be saved in {folder}: {problem}',
                logger='current',
                level=logging.WARNING,
            )
            return None
        return folder / file_of(rank) if rank else folder


@contextmanager
def steps_kept(runner: Runner) -> Iterator[None]:
    """Saves a step of a run whose loss is not finite, and says so in the error.

    Args:
        runner (Runner): A runner whose training is in the block.
    """
    keep = KeepStep()
    runner.register_hook(keep)
    try:
        yield
    except NotFiniteError as error:
        broken = bad_weights({'the model': _unwrapped(runner.model)})
        earlier = (
            f'. Weights were not finite before this step: {some(broken, 3)}. The gradient of an '
            'earlier one broke them; optim_wrapper.clip_grad.error_if_nonfinite=True stops there'
        )
        text, kept = f'{error}{earlier if broken else ""}', keep.save(runner, error)
        again = '' if kept is None else f'. To run this step again: tools/train.py --replay {kept}'
        raise error.with_text(f'{text}{again}') from error


def _teachers(runner: Runner) -> dict[str, str | None]:
    """Hashes of the weights of the teachers; those at the start of a run, if they are known."""
    known = next((hook for hook in runner.hooks if isinstance(hook, SameRun)), None)
    if known is not None:
        return known.identity['teachers']
    return {n: one.weights_hash() for n, one in _unwrapped(runner.model).teachers.items()}


def _remove_others(work_dir: Path, folder: Path) -> None:
    """Keeps one step of a run."""
    for other in work_dir.glob(FOLDER.format('*')):
        named = other.name[4:].isdigit() and not other.is_symlink()
        if other != folder and named and [*other.glob('config*.py')]:
            shutil.rmtree(other, ignore_errors=True)  # another process may be faster


# Running it again ---------------------------------------------------------------------------------


class Step:
    """A step that was saved.

    Args:
        path (str | Path): Its folder, for the first process whose step is there; or the file of a
            process.

    Attributes:
        folder (Path): The folder.
        config (Path): The file with the config of the run.

    Raises:
        CheckpointError: If there is none, or it is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.folder = path.parent if path.is_file() else path
        file = path if path.is_file() else min(path.glob('step*.pth'), default=path / STEP)
        self.config = file.with_name(file.stem.replace('step', 'config', 1) + '.py')
        if not file.is_file() or not self.config.is_file():
            raise CheckpointError(
                f'--replay {path}: no step was saved there; it takes a folder nan_<iteration> in '
                'the work dir of a run that ended with a loss that is not finite'
            )
        self.content = read_data(str(file))
        if not _is_a_step(self.content):
            raise CheckpointError(f'{file} is damaged, or of another version of this package')
        with _damage_named(file):
            self.batch = unpacked(self.content['batch'])
            self.extra = unpacked(self.content['extra'])

    def put_into(self, runner: Runner) -> None:
        """Brings a runner to the beginning of the step.

        Args:
            runner (Runner): A runner with the same config.

        Raises:
            CheckpointError: If the model or a teacher is another one.
        """
        model, content = _unwrapped(runner.model), self.content
        now = _teachers(runner)
        other = [name for name in now if now[name] != content['teachers'].get(name)]
        if other:
            raise CheckpointError(
                f'{self.folder}: the weights of teacher {some(map(repr, other))} have changed'
            )
        for what, ours in (('parameters', _parameters(model)), ('buffers', _buffers(model))):
            theirs, ours = content[what], dict(ours)
            unfit = [k for k in ours if k not in theirs or theirs[k].shape != ours[k].shape]
            if unfit:
                raise CheckpointError(
                    f'{self.folder}: the model has changed: {some(unfit, 3)} of it does not fit'
                )
            with torch.no_grad():
                for name, value in ours.items():
                    value.copy_(theirs[name])
        with _damage_named(self.folder):
            for name, module in _modules(model):
                if name in self.extra:
                    module.set_extra_state(copy.deepcopy(self.extra[name]))
        runner.message_hub.runtime_info.update(content['hub'])

    def run(self, runner: Runner) -> NotFiniteError | dict[str, Tensor]:
        """Runs the forward of the step.

        Args:
            runner (Runner): A runner that :meth:`put_into` has prepared, with its optim wrapper.

        Returns:
            NotFiniteError | dict: How it failed, or the losses.
        """
        model = _unwrapped(runner.model)
        model.train()
        seed_with(*self.content['key'])
        try:
            with runner.optim_wrapper.optim_context(model):
                with _damage_named(self.folder):
                    data = model.data_preprocessor(copy.deepcopy(self.batch), True)
                return model._run_forward(data, mode='loss')
        except NotFiniteError as error:
            return error
        except Exception as error:  # the step that was kept came as far as its losses
            if is_ours(error):
                raise
            raise CheckpointError(
                f'{self.folder} cannot be run again: {type(error).__name__}: {first_line(error)}'
            ) from error

    def same(self, error: NotFiniteError) -> bool:
        """Whether a failure has the losses of this one, bit for bit."""
        ours, theirs = self.content['losses'], plain_losses(error.losses)
        return ours.keys() == theirs.keys() and all(
            torch.equal(_bits(value), _bits(theirs[key])) for key, value in ours.items()
        )


def _is_a_step(content: Any) -> bool:
    """Whether a file holds what :meth:`KeepStep.save` writes, of this version."""
    whole = isinstance(content, Mapping) and all(
        key in content and fits(content[key], hint) for key, hint in _KINDS.items()
    )
    return (
        whole
        and content['version'] == VERSION
        and 'batch' in content
        and content['culprit'] in content['losses']
        and min(content['key'], default=-1) >= 0
        and all(
            isinstance(value, Tensor)
            for key in ('losses', 'parameters', 'buffers')
            for value in content[key].values()
        )
    )


_KINDS = dict(
    version=int,
    key=list[int],
    culprit=str,
    device=str,
    processes=int,
    losses=dict,
    parameters=dict,
    buffers=dict,
    extra=dict,
    teachers=dict,
    hub=dict,
)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Names a file in errors of what stands in it."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f'{path} is damaged: {first_line(error)}') from error


def _bits(value: Tensor) -> Tensor:
    return value.detach().reshape(-1).contiguous().view(torch.uint8)


@contextmanager
def first_not_finite(models: Mapping[str, nn.Module]) -> Iterator[list[str]]:
    """Notes the first module that gives something that is not finite, while the block runs.

    Args:
        models (Mapping[str, nn.Module]): The models by what messages call them.

    Yields:
        list[str]: Empty, or one text.
    """
    found: list[str] = []
    handles = []

    def look(name: str, of: str) -> Any:
        def hook(module: nn.Module, inputs: Any, outputs: Any) -> None:
            bad = [] if found else [x for x in _tensors(outputs) if not _finite(x)]
            if bad:
                given = list(_tensors(inputs))
                before = 'finite' if all(map(_finite, given)) else 'not finite already'
                largest = max((x.abs().max().item() for x in given if x.numel()), default=math.nan)
                found.append(
                    f"'{name}' of {of} ({type(module).__name__}): its output {tuple(bad[0].shape)} "
                    f'has {(~torch.isfinite(bad[0])).sum().item()} of {bad[0].numel()} values that '
                    f'are not finite; its input is {before}, at most {largest:.3g}'
                )

        return hook

    for of, model in models.items():
        for name, module in model.named_modules():
            if name and not any(True for _ in module.children()):
                handles.append(module.register_forward_hook(look(name, of)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def bad_weights(models: Mapping[str, nn.Module], trained: bool = False) -> list[str]:
    """The parameters of models that are not finite, as text; those alone that are trained."""
    return [
        f'`{name}` of {of}'
        for of, model in models.items()
        for name, value in model.named_parameters()
        if (value.requires_grad or not trained) and not _finite(value)
    ]


def check_weights(runner: Runner) -> None:
    """Refuses to save weights that are not finite: what was saved before is better.

    A gradient that is not finite breaks them after a loss that is, so that nobody has noticed yet.

    Args:
        runner (Runner): A runner; all of its processes call this.

    Raises:
        BrokenWeightsError: If a weight that is trained is not finite.
    """
    found = bad_weights({'the model': _unwrapped(runner.model)}, trained=True)
    found = [name for names in all_gather_object(found) for name in names]  # FSDP has parts
    if found:
        raise BrokenWeightsError(
            f'weights are not finite after iteration {runner.iter}: {some(dict.fromkeys(found), 3)}'
            '. No checkpoint is saved, and those before it stay: lower the learning rate or '
            '`loss_weight` and go on with --resume; '
            'optim_wrapper.clip_grad.error_if_nonfinite=True stops at the gradient that breaks them'
        )


def _finite(value: Tensor) -> bool:
    value = value.to_local() if hasattr(value, 'to_local') else value  # a part of it, of FSDP
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value.detach()
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return nn.Module.named_modules(model)


def _parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in _modules(model):
        for key, value in module._parameters.items():
            if value is not None:
                yield f'{name}.{key}', value.detach()


def _buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in _modules(model):
        for key, value in module._buffers.items():
            if value is not None:
                yield f'{name}.{key}', value


def _plain(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a message hub says, without the objects in it."""
    return {key: plain(value) for key, value in info.items() if key != 'cfg'}
