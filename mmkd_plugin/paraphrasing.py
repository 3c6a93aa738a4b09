"""The stage before factor transfer: a paraphraser learns to reconstruct the teacher's maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmkd_plugin.building import build_module
from mmkd_plugin.registry import MODELS
from mmkd_plugin.taught_maps import TaughtMaps
from mmkd_plugin.terms.teacher_connector import is_measured

FILE_NAME = 'paraphraser.pth'

#: The file of teacher connectors that are measured and not trained.
FITTED_NAME = 'fitted.pth'

#: Keys of a Distiller without a meaning for this stage, in which the student does not run.
ONLY_FOR_THE_STUDENT = ('task', 'compile', 'unlabelled')


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
        lines = {name: line for name, line in distill.items() if has_teacher_connector(line)}
        if not lines:
            raise ValueError(
                'no term of `distill` has a `teacher_connector`; nothing to train here'
            )
        trained = {name: line for name, line in lines.items() if not measured(name, line)}
        lines = trained or lines
        self.taught = TaughtMaps(teacher, lines, self.data_preprocessor)
        self.teachers = self.taught.teachers
        self.paraphrasers = nn.ModuleDict()
        for name, maps in self.taught.first.items():
            self.paraphrasers[name] = nn.ModuleList(
                _build(lines[name]['teacher_connector'], name, x) for x in maps
            )
        for one in self.teachers.values():
            print_log(f'\n{one.work()}', logger='current')
        print_log(f'\n{self.paraphrasers}', logger='current')

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
        return {
            f'{term}.loss': sum(
                paraphraser.reconstruction_loss(x)
                for paraphraser, x in zip(self.paraphrasers[term], maps)
            )
            for term, maps in self.taught.of(inputs, data_samples)
        }

    def _apply(self, fn: Any, recurse: bool = True) -> ParaphraserTraining:
        self.taught.apply_to_tensors(fn, recurse)
        return super()._apply(fn, recurse)


def has_teacher_connector(line: Any) -> bool:
    """Whether a term of a config converts the teacher's maps.

    Args:
        line (Any): The config of a term, a value of ``distill``.
    """
    return isinstance(line, dict) and isinstance(line.get('teacher_connector'), dict)


def usual_file(name: str, line: dict, work_dir: str) -> str:
    """Where a run finds the weights of a teacher connector whose config names no file.

    Args:
        name (str): Name of the term.
        line (dict): The config of the term, with a ``teacher_connector``.
        work_dir (str): The work dir of the run.

    Returns:
        str: A file in the work dir.

    Raises:
        ValueError: If there is no such connector.
    """
    return str(Path(work_dir, FITTED_NAME if measured(name, line) else FILE_NAME))


def measured(name: str, line: dict) -> bool:
    """Whether the teacher connector of a term is measured, and not trained.

    Args:
        name (str): Name of the term.
        line (dict): The config of the term, with a ``teacher_connector``.

    Raises:
        ValueError: If there is no such connector.
    """
    config = line['teacher_connector']
    return 'type' in config and is_measured(config, f'distill.{name}.teacher_connector')


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
        fit = ': it is measured, by tools/fit_connector.py' if hasattr(module, 'observe') else ''
        raise ValueError(
            f'{here}: {type(module).__name__} has no `reconstruction_loss` to train it{fit}'
        )
    return module
