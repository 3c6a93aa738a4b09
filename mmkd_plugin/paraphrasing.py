"""The stage before factor transfer: a paraphraser learns to reconstruct the teacher's maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmkd_plugin.building import build_module
from mmkd_plugin.registry import MODELS
from mmkd_plugin.taps import as_list
from mmkd_plugin.taps.dry_run import DryRun
from mmkd_plugin.taps.example import random_state_kept
from mmkd_plugin.teachers.base import Batch, Trial
from mmkd_plugin.teachers.configs import build_teacher, kind_of_teacher, teacher_configs
from mmkd_plugin.terms.term import Term
from mmkd_plugin.views import View

FILE_NAME = 'paraphraser.pth'

#: Keys of a Distiller without a meaning for this stage, in which the student does not run.
ONLY_FOR_THE_STUDENT = ('task', 'compile')


@MODELS.register_module()
class ParaphraserTraining(BaseModel):
    """Trains the ``teacher_connector`` of each term on the maps of its tap in the teacher.

    :func:`stage_config` makes its config from that of a Distiller. The student does not run, and
    labels are not read.

    Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018.

    - paper: https://arxiv.org/abs/1802.04977
    - code: https://github.com/Jangho-Kim/Factor-Transfer-pytorch

    Args:
        student (dict): Config of the student; its data preprocessor is used.
        teacher (dict | list[dict]): One or several teachers, as for the Distiller.
        distill (dict[str, dict]): The terms, as for the Distiller; those without a
            ``teacher_connector`` are left out.
        data_preprocessor (dict, optional): The data preprocessor, if the student's config has none.
            Defaults to None.

    Raises:
        ValueError: If no term has a ``teacher_connector``, or one of them cannot be trained.

    Examples:
        >>> model = dict(
        ...     type='mmkd_plugin.ParaphraserTraining',
        ...     student=dict(type='EncoderDecoder'),  # and so on, as in a config of mmseg
        ...     teacher=dict(config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        ...                  checkpoint='pspnet_r101.pth'),
        ...     distill=dict(
        ...         ft=dict(
        ...             tap='decode_head.bottleneck',
        ...             connector=dict(type='mmkd_plugin.Translator'),
        ...             teacher_connector=dict(type='mmkd_plugin.Paraphraser'),
        ...             loss=dict(type='mmkd_plugin.FactorTransferLoss', loss_weight=500))))
    """

    def __init__(
        self,
        student: dict,
        teacher: dict | Sequence[dict],
        distill: dict,
        data_preprocessor: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=student.get('data_preprocessor') or data_preprocessor)
        configs = teacher_configs(teacher)
        lines = {name: line for name, line in distill.items() if has_teacher_connector(line)}
        if not lines:
            raise ValueError(
                'no term of `distill` has a `teacher_connector`; nothing to train here'
            )
        self.terms = {
            name: Term.from_config(name, line, list(configs)) for name, line in lines.items()
        }
        used = {term.teacher for term in self.terms.values()}
        for name in used:
            if kind_of_teacher(configs[name]).learns:
                raise ValueError(f"'{name}' is trained along: it cannot have a `teacher_connector`")
        with random_state_kept():
            self.teachers = {name: build_teacher(configs[name]) for name in configs if name in used}
        self.paraphrasers = nn.ModuleDict()
        trial, device = Trial(None, self.data_preprocessor, DryRun()), torch.device(get_device())
        for name, teacher in self.teachers.items():
            preview = teacher.prepare(trial, self._views(name), device)
            for term in self._terms_of(name):
                self.paraphrasers[term.name] = nn.ModuleList(
                    _build(lines[term.name]['teacher_connector'], term.name, x)
                    for x in as_list(preview.shown[term.teacher_view])
                )
            print_log(f'\n{teacher.work()}', logger='current')
        print_log(f'\n{self.paraphrasers}', logger='current')

    def _terms_of(self, teacher: str) -> list[Term]:
        return [term for term in self.terms.values() if term.teacher == teacher]

    def _views(self, teacher: str) -> list[View]:
        return [term.teacher_view for term in self._terms_of(teacher)]

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'loss'
    ) -> dict[str, Tensor]:
        """Computes the reconstruction loss of each term.

        Args:
            inputs (Tensor): Images ``(N, C, H, W)`` from the data preprocessor.
            data_samples (list, optional): Their data samples. Defaults to None.
            mode (str): ``'loss'``, the only mode. Defaults to ``'loss'``.

        Returns:
            dict[str, Tensor]: A scalar ``<term>.loss`` for each term.

        Raises:
            ValueError: If ``mode`` is another one.
        """
        if mode != 'loss':
            raise ValueError(f"a ParaphraserTraining only trains, it has no mode='{mode}'")
        losses = {}
        for name, teacher in self.teachers.items():
            lesson = teacher.teach(Batch(inputs, data_samples), self._views(name))
            for term in self._terms_of(name):
                maps = as_list(lesson.shown[term.teacher_view])
                losses[f'{term.name}.loss'] = sum(
                    paraphraser.reconstruction_loss(x)
                    for paraphraser, x in zip(self.paraphrasers[term.name], maps)
                )
        return losses

    def _apply(self, fn: Any, recurse: bool = True) -> ParaphraserTraining:
        for teacher in self.teachers.values():
            teacher.apply_to_tensors(fn, recurse)
        return super()._apply(fn, recurse)


def has_teacher_connector(line: Any) -> bool:
    """Whether a term of a config converts the teacher's maps.

    Args:
        line (Any): The config of a term, a value of ``distill``.
    """
    return isinstance(line, dict) and isinstance(line.get('teacher_connector'), dict)


def stage_config(cfg: Config, work_dir: str) -> None:
    """Turns the config of a distilled run into that of the stage before it, in place.

    The settings in ``paraphraser=dict(...)`` at the top of the config replace those of the run;
    without them the data, the optimizer and the length of training are those of the run. There is
    no validation.

    Args:
        cfg (Config): The config of the run.
        work_dir (str): Folder for the logs and checkpoints of the stage.
    """
    cfg.model.type = 'mmkd_plugin.ParaphraserTraining'
    for key in ONLY_FOR_THE_STUDENT:
        cfg.model.pop(key, None)
    cfg.work_dir = work_dir
    for name in ('val', 'test'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            cfg[f'{name}_{part}'] = None
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint')
    if checkpoint:
        checkpoint.pop('save_best', None)
    cfg.load_from = None
    settings = cfg.pop('paraphraser', None)
    if settings:
        cfg.merge_from_dict(dict(settings))


def _build(config: dict, term: str, maps: Tensor) -> nn.Module:
    here = f'distill.{term}.teacher_connector'
    config = {key: value for key, value in config.items() if key != 'checkpoint'}
    module = build_module(config, here, dict(in_channels=maps.shape[1]))
    if not hasattr(module, 'reconstruction_loss'):
        raise ValueError(
            f'{here}: {type(module).__name__} has no `reconstruction_loss` to train it'
        )
    return module
