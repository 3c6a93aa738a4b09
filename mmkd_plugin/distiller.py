"""Distiller: a student that trains with teachers and otherwise is the student."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.logging import MessageHub, print_log
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmkd_plugin.checkpoint import METADATA_KEY, check_student_weights
from mmkd_plugin.dry_run import DryRun, dry_run_student, random_state_kept
from mmkd_plugin.plan import plan
from mmkd_plugin.registry import MODELS
from mmkd_plugin.taps import Maps, Tap, TapReader, find_module
from mmkd_plugin.teacher import Teacher
from mmkd_plugin.term import Term, check_keys

STATE_VERSION = 1


@MODELS.register_module()
class Distiller(BaseModel):
    """Trains a student with terms that compare it to frozen teachers.

    ``mode='loss'`` gives the student's own losses and one ``distill.<term>.loss`` for each term
    that is on. Everything else is the student's: predictions, the state dict, the names of the
    parameters, and any attribute that the Distiller does not have.

    Args:
        student (dict | nn.Module): A model that trains by itself: any mmengine ``BaseModel``.
        teacher (dict | list[dict]): ``config`` (path, ``pkg::`` path or model dict),
            ``checkpoint``, ``strict`` and ``name`` of a :class:`Teacher`; a list for several,
            which then all need a name.
        distill (dict[str, dict]): The terms: ``tap`` (or ``student_tap`` and ``teacher_tap``),
            ``loss``, and optionally ``teacher``, ``connector`` and ``schedule``. See :class:`Term`
            and :class:`Schedule`.
        data_preprocessor (dict, optional): The student's, where its own config has none; filled in
            by the runner. Defaults to None.

    Raises:
        ValueError: If a term, a tap or a teacher cannot be used; before training starts.
        FloatingPointError: If the loss of a term is not finite.

    Examples:
        >>> model = dict(
        ...     type='mmkd_plugin.Distiller',
        ...     student=dict(type='EncoderDecoder'),  # and so on, as in a config of mmseg
        ...     teacher=dict(config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        ...                  checkpoint='pspnet_r101.pth'),
        ...     distill=dict(
        ...         cwd=dict(
        ...             tap='decode_head.conv_seg',
        ...             loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=4, loss_weight=3))))
    """

    def __init__(
        self,
        student: dict | nn.Module,
        teacher: dict | Sequence[dict],
        distill: dict,
        data_preprocessor: dict | None = None,
    ) -> None:
        if isinstance(student, dict):
            student = dict(student)
            if data_preprocessor is not None:
                student.setdefault('data_preprocessor', data_preprocessor)
            student = MODELS.build(student)
        with random_state_kept():  # the student starts as it would alone
            super().__init__(data_preprocessor=student.data_preprocessor)
            self.student = student
            configs = _teacher_configs(teacher)
            self.distill = nn.ModuleDict(_terms(distill, list(configs)))
            used = {term.teacher for term in self.distill.values()}
            for name in set(configs) - used:
                print_log(
                    f"Teacher '{name}' is not built: no term of `distill` has teacher='{name}'.",
                    logger='current',
                    level=30,
                )
            self.teachers = {n: Teacher(**c) for n, c in configs.items() if n in used}
            self._in_place = self._connect()
        self._checked_schedules = False
        self._register_state_dict_hook(_student_state)

    def _connect(self) -> frozenset[Tap]:
        """Tries student and teachers once, builds the connectors and logs the plan."""
        device = torch.device(get_device())
        terms = list(self.distill.values())
        student = dry_run_student(self.student, [term.student_tap for term in terms], device)
        taught: dict[str, DryRun] = {}
        for name, teacher in self.teachers.items():
            taps = [term.teacher_tap for term in terms if term.teacher == name]
            taught[name] = teacher.prepare(
                self.student.data_preprocessor, taps, device, student.size
            )
        labels = torch.zeros(1, student.size, student.size, dtype=torch.long)
        for term in terms:
            s, t = student.values[term.student_tap], taught[term.teacher].values[term.teacher_tap]
            _check_classes(term, self.student, s, self.teachers[term.teacher].model, t)
            term.connect(s, t, labels)
        text = plan(self.distill, self.teachers, student, taught)
        print_log(f'\n{text}', logger='current')
        return student.in_place

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> Any:
        """Runs the student, and in ``mode='loss'`` the teachers and the terms that are on.

        Args:
            inputs (Tensor): Images ``(N, C, H, W)`` from the data preprocessor.
            data_samples (list, optional): Their data samples. Defaults to None.
            mode (str): ``'loss'``, ``'predict'`` or ``'tensor'``. Defaults to ``'tensor'``.

        Returns:
            dict | list | Tensor: What the student gives; in ``mode='loss'`` with the terms added.
        """
        if mode != 'loss':
            return self.student(inputs, data_samples, mode=mode)
        factors = self._factors()
        active = [term for name, term in self.distill.items() if factors[name] > 0]
        targets = {
            name: teacher(inputs, data_samples, taps)
            for name, teacher in self.teachers.items()
            if (taps := [term.teacher_tap for term in active if term.teacher == name])
        }
        with TapReader(self.student, [t.student_tap for t in active], self._in_place) as reader:
            losses = dict(self.student(inputs, data_samples, mode='loss'))
        labels = _labels(data_samples, active)
        values = {}
        for term in active:
            student, target = reader.read(term.student_tap), targets[term.teacher][term.teacher_tap]
            if torch.is_grad_enabled():
                _check_gradient(term, student)
            values[term] = term(student, target, labels)
            losses[f'distill.{term.name}.loss'] = values[term] * factors[term.name]
        if values and not torch.isfinite(torch.stack([*values.values()]).detach()).all():
            term = next(term for term, loss in values.items() if not torch.isfinite(loss))
            target = targets[term.teacher][term.teacher_tap]
            raise FloatingPointError(
                _not_finite(term, values[term], reader.read(term.student_tap), target)
            )
        if get_world_size() > 1:  # DDP waits for the gradient of every parameter
            idle = [
                p for term in self.distill.values() if term not in active for p in term.parameters()
            ]
            if idle:
                losses['distill.idle_loss'] = sum(p.sum() for p in idle) * 0
        return losses

    def _factors(self) -> dict[str, float]:
        """The factor of each term now, by the counters that mmengine's runner keeps."""
        hub = MessageHub.get_current_instance()
        info = hub.runtime_info
        if not self._checked_schedules:
            for name, term in self.distill.items():
                unit = 'epochs' if term.schedule.by_epoch else 'iters'
                length = info.get(f'max_{unit}')
                if length is not None and term.schedule.never_on(length):
                    raise ValueError(
                        f'distill.{name} never comes on: its schedule is "{term.schedule}" and the '
                        f'run has {length} {unit}'
                        + ('; a run by iterations has one epoch' if unit == 'epochs' else '')
                    )
            self._checked_schedules = True
        return {
            name: term.schedule.factor(info.get('epoch' if term.schedule.by_epoch else 'iter', 0))
            for name, term in self.distill.items()
        }

    def init_weights(self) -> None:
        """Initialises the student as it would be alone; the teachers keep what they loaded."""
        self.student.init_weights()

    def named_parameters(
        self, prefix: str = '', recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The student's parameters under its own names, then those of the terms.

        Layer-wise learning rates of OpenMMLab go by names such as ``backbone.stages.0``.
        """
        start = f'{prefix}.student.' if prefix else 'student.'
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            if name.startswith(start):
                name = f'{prefix}.{name[len(start) :]}' if prefix else name[len(start) :]
            yield name, parameter

    def __getattr__(self, name: str) -> Any:
        """Falls back on the student, for hooks that look for ``model.bbox_head`` and the like."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get('_modules', {})
            if 'student' not in modules:
                raise
            return getattr(modules['student'], name)

    def _apply(self, fn: Any, recurse: bool = True) -> Distiller:
        for teacher in self.teachers.values():
            teacher.apply_to_tensors(fn, recurse)
        return super()._apply(fn, recurse)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any
    ) -> None:
        """Takes a student's state dict, and the state of the terms that lies beside it."""
        own = self.student.state_dict()
        found = {key[len(prefix) :]: key for key in state_dict if key.startswith(prefix)}
        saved = local_metadata.get(METADATA_KEY)
        check_student_weights(
            {key: value.shape for key, value in own.items()},
            {key: state_dict[full] for key, full in found.items()},
            distilled=saved is not None,
        )
        for key, full in found.items():
            state_dict[f'{prefix}student.{key}'] = state_dict.pop(full)
        metadata = getattr(state_dict, '_metadata', None)
        if metadata is not None:  # so that version conversions of the student's modules work
            for key in [key for key in metadata if not key.startswith('student')]:
                metadata.setdefault(f'student.{key}'.rstrip('.'), metadata[key])
        for key in self.data_preprocessor.state_dict():
            value = state_dict.get(f'{prefix}student.data_preprocessor.{key}')
            if value is not None:
                state_dict[f'{prefix}data_preprocessor.{key}'] = value
        terms = {} if saved is None else saved['state']
        missing = []
        for key, value in self.distill.state_dict(prefix='distill.').items():
            if key in terms and terms[key].shape == value.shape:
                value = terms[key]
            elif saved is not None:
                missing.append(key)
            state_dict[prefix + key] = value
        if missing:
            print_log(
                f'The checkpoint has no fitting state for {", ".join(missing)}: '
                'this part of the distillation starts afresh.',
                logger='current',
                level=30,
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def _student_state(module: nn.Module, destination: dict, prefix: str, local_metadata: dict) -> None:
    """State-dict hook: the student's keys alone, the state of the terms in the metadata."""
    start, terms = f'{prefix}student.', {}
    for key in [key for key in destination if key.startswith(prefix)]:
        value = destination.pop(key)
        if key.startswith(start):
            destination[prefix + key[len(start) :]] = value
        elif key.startswith(f'{prefix}distill.'):
            terms[key[len(prefix) :]] = value.detach().cpu()
    metadata = getattr(destination, '_metadata', {})
    for key in [key for key in metadata if f'{key}.'.startswith(start)]:
        metadata[(prefix + key[len(start) :]).rstrip('.')] = metadata[key]
    local_metadata[METADATA_KEY] = dict(version=STATE_VERSION, state=terms)
    metadata[prefix[:-1]] = local_metadata


def _teacher_configs(teacher: dict | Sequence[dict]) -> dict[str, dict]:
    several = not isinstance(teacher, dict)
    configs: dict[str, dict] = {}
    for config in teacher if several else [teacher]:
        check_keys('teacher', config, ('config', 'checkpoint', 'strict', 'name'))
        if 'config' not in config:
            raise ValueError("teacher has no `config`: a path, 'mmseg::...' or a model dict")
        if 'checkpoint' not in config:
            raise ValueError(
                'teacher has no `checkpoint`: a file or URL of its trained weights '
                '(checkpoint=None is a teacher with random weights)'
            )
        name = config.get('name', None if several else 'teacher')
        if name is None or name in configs:
            raise ValueError("with several teachers each needs a `name` of its own: name='large'")
        configs[name] = dict(config, name=name)
    if not configs:
        raise ValueError('teacher is an empty list')
    return configs


def _terms(distill: Any, teachers: Sequence[str]) -> dict[str, Term]:
    if not isinstance(distill, dict) or not distill:
        raise ValueError(
            'distill has no term: add one, such as '
            "distill=dict(cwd=dict(tap='neck', loss=dict(type='mmkd_plugin.ChannelWiseLoss')))"
        )
    if 'loss' in distill and ('tap' in distill or 'student_tap' in distill):
        raise ValueError('distill is a dict of named terms: write distill=dict(cwd=dict(tap=...))')
    return {name: Term.from_config(name, config, teachers) for name, config in distill.items()}


def _check_classes(
    term: Term, student: nn.Module, student_maps: Maps, teacher: nn.Module, teacher_maps: Maps
) -> None:
    """Class scores of different numbers of classes are no matter of a 1×1 convolution."""
    if term._connector != 'auto' or not getattr(term.loss, 'needs_same_channels', True):
        return
    ours, theirs = (
        _classes(m, tap) for m, tap in ((student, term.student_tap), (teacher, term.teacher_tap))
    )
    if not ours or not theirs or ours == theirs:
        return
    s, t = (maps if isinstance(maps, Tensor) else maps[0] for maps in (student_maps, teacher_maps))
    each, rest = divmod(s.shape[1], ours)
    if not rest and t.shape[1] == each * theirs:
        raise ValueError(
            f"distill.{term.name}: '{term.student_tap}' gives scores of {ours} classes in the "
            f'student and {theirs} in the teacher. Class scores can be compared only for the same '
            "classes: take a teacher of the student's dataset, or tap features below the "
            'classifier'
        )


def _classes(model: nn.Module, tap: Tap) -> int | None:
    """``num_classes`` of the innermost module around a tap that has one."""
    parts = tap.path.split('.')
    for end in range(len(parts), 0, -1):
        module = find_module(model, Tap('.'.join(parts[:end])), 'the model')
        classes = getattr(module, 'num_classes', None)
        if isinstance(classes, int):
            return classes
    return None


def _labels(data_samples: list | None, active: Sequence[Term]) -> Tensor | None:
    """The segmentation labels of a batch, ``(N, H, W)``, if a term needs them."""
    asking = next((term.name for term in active if term.needs_labels), None)
    if asking is None:
        return None
    if not data_samples or 'gt_sem_seg' not in data_samples[0]:
        raise ValueError(
            f'distill.{asking}: its loss has an `ignore_index` and needs segmentation labels; '
            'this batch has none'
        )
    maps = [sample.gt_sem_seg for sample in data_samples]
    return torch.cat([m.data if 'data' in m else m.sem_seg for m in maps])


def _check_gradient(term: Term, student: Maps) -> None:
    tensors = [student] if isinstance(student, Tensor) else student
    if not any(tensor.requires_grad for tensor in tensors):
        raise ValueError(
            f"distill.{term.name}: no gradient flows into '{term.student_tap}' of the student. It "
            'lies in a frozen part, or inside a block with activation checkpointing '
            '(`with_cp=True`); tap what comes after it'
        )


def _not_finite(term: Term, loss: Tensor, student: Maps, teacher: Maps) -> str:
    iteration = MessageHub.get_current_instance().runtime_info.get('iter', 0)
    return (
        f'distill.{term.name}: the loss is {loss.item()} at iteration {iteration}. '
        f"'{term.student_tap}' of the student: {_ranges(student)}. "
        f"'{term.teacher_tap}' of the teacher: {_ranges(teacher)}. "
        'Lower the learning rate or `loss_weight`, add gradient clipping, or train without AMP'
    )


def _ranges(maps: Maps) -> str:
    tensors = [maps] if isinstance(maps, Tensor) else maps
    return '; '.join(
        f'{tuple(t.shape)} {t.min().item():.3g} to {t.max().item():.3g}, '
        f'{(~torch.isfinite(t)).sum().item()} of {t.numel()} not finite'
        for t in tensors
    )
