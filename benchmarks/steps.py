"""``step``: an optimizer step of the plain student, and with its teacher run in several ways."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks import mmrazor
from benchmarks.measure import Rounds, take_turns
from mmkd_plugin import stack
from mmkd_plugin.cache.loading import field_of, map_key
from mmkd_plugin.cache.store import CacheError, CacheWriter
from mmkd_plugin.distiller import Distiller
from mmkd_plugin.losses.numerics.maps import sum_over_maps
from mmkd_plugin.registry import MODELS
from mmkd_plugin.taps import Tap, Taps, as_list, find_module
from mmkd_plugin.taps.dry_run import DryRun
from mmkd_plugin.teachers.base import Trial
from mmkd_plugin.teachers.caching import description, padding_values
from mmkd_plugin.teachers.online import OnlineTeacher
from mmkd_plugin.views import View

STUDENT, BARE, RAZOR = 'student', 'and bare teacher', 'MMRazor'
ONLINE, FP32, CACHED = 'ours', 'ours, fp32', 'ours, cached'
VARIANTS = (STUDENT, BARE, RAZOR, ONLINE, FP32, CACHED)
CONFIGS = Path(__file__).resolve().parents[1] / 'configs'


@dataclass(frozen=True)
class Pair:
    """A teacher and a student.

    Args:
        title (str): What tables call them.
        config (str): The recipe, below ``configs/``.
        tau (float), weight (float): Of the channel-wise loss in it, for MMRazor's form.
        cpu, gpu, quick (tuple[int, int, int]): Images, height and width of the batch.
    """

    title: str
    config: str
    tau: float
    weight: float
    cpu: tuple[int, int, int]
    gpu: tuple[int, int, int]
    quick: tuple[int, int, int]

    def size(self, device: torch.device, quick: bool) -> tuple[int, int, int]:
        """The batch to measure with."""
        return self.quick if quick else self.cpu if device.type == 'cpu' else self.gpu


PAIRS = {
    'pspnet': Pair(
        title='PSPNet R101 → R18',
        config='cwd/cwd-logits_pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
        tau=4,
        weight=3,
        cpu=(2, 256, 512),
        gpu=(8, 512, 1024),
        quick=(2, 64, 64),
    ),
    'retinanet': Pair(
        title='RetinaNet R101 → R50',
        config='cwd/cwd-neck_retinanet_r101_retinanet_r50_fpn_1x_coco.py',
        tau=1,
        weight=10,
        cpu=(1, 256, 320),
        gpu=(8, 800, 1344),
        quick=(1, 64, 64),
    ),
}


class WithTeacher(BaseModel):
    """A student that takes its step after a teacher's forward, and learns nothing from it.

    Args:
        student (nn.Module): The student.
        teacher (nn.Module): The teacher.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__(data_preprocessor=student.data_preprocessor)
        self.student, self.teacher = student, teacher

    def forward(self, inputs: Tensor, data_samples: list, mode: str = 'loss') -> dict:
        self.teacher.eval()
        with torch.no_grad():
            self.teacher(inputs, None, mode='tensor')
        return self.student(inputs, data_samples, mode=mode)


class RazorStep(BaseModel):
    """What MMRazor 1.0.0 does in a step of ``SingleTeacherDistill``.

    The teacher, in training mode but for its batch norms, computes its own loss, without a graph;
    recorders keep the outputs of a module of each model; MMRazor's loss compares them.

    Args:
        student (nn.Module): The student.
        teacher (nn.Module): The teacher.
        tap (str): The module to record.
        loss (Callable): Compares a map of the student with one of the teacher.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, tap: str, loss: Callable[..., Tensor]
    ) -> None:
        super().__init__(data_preprocessor=student.data_preprocessor)
        self.student, self.teacher, self.loss = student, teacher.requires_grad_(False), loss
        self.tap = Tap(tap)
        for module in teacher.modules():
            if hasattr(module, 'inplace'):
                module.inplace = False

    def forward(self, inputs: Tensor, data_samples: list, mode: str = 'loss') -> dict:
        self.teacher.train()
        for module in self.teacher.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        with torch.no_grad(), self._recorded(self.teacher) as taught:
            self.teacher(inputs, data_samples, mode='loss')
        with self._recorded(self.student) as seen:
            losses = self.student(inputs, data_samples, mode='loss')
        return {**losses, 'distill_loss': self.loss(seen[0], taught[0])}

    @contextmanager
    def _recorded(self, model: nn.Module) -> Iterator[list]:
        kept: list = []
        module = find_module(model, self.tap, 'the model')
        handle = module.register_forward_hook(lambda _, __, output: kept.append(output))
        try:
            yield kept
        finally:
            handle.remove()


@dataclass
class Bench:
    """The variants of one pair, ready to take steps.

    Args:
        models (dict[str, BaseModel]): By variant; all have the same student.
        data (dict[str, dict]): A batch for each.
        notes (dict[str, str]): Why a variant is not there.
        teachers (dict[str, nn.Module]): The network that runs beside the student, by variant.
        optimizer (OptimWrapper): That of the student.
        maps (list[Tensor]): What the teacher's tap gives.
    """

    models: dict[str, BaseModel]
    data: dict[str, dict]
    notes: dict[str, str]
    teachers: dict[str, nn.Module]
    optimizer: OptimWrapper
    maps: list[Tensor]

    def step(self, variant: str) -> None:
        """One training step, as a runner takes it."""
        self.models[variant].train_step(self.data[variant], self.optimizer)


def set_up(pair: Pair, device: torch.device, quick: bool = False) -> Bench:
    """Builds student, teachers and batches, with random weights."""
    stack.prepare()
    cfg = Config.fromfile(CONFIGS / pair.config)
    init_default_scope(cfg.default_scope)
    count, height, width = pair.size(device, quick)
    without_downloads(cfg.model, (height, width))
    (term,) = cfg.model.distill.values()
    with quiet(), DefaultScope.overwrite_default_scope(cfg.default_scope):
        student = MODELS.build(cfg.model.student)
        plain = OnlineTeacher(cfg.model.teacher.config, None).model  # as MMRazor and others run it
        online, fp32 = (
            Distiller(student, dict(cfg.model.teacher, **options), dict(cfg.model.distill))
            for options in ({}, dict(inference=dict(precision='fp32')))
        )
    models: dict[str, BaseModel] = {STUDENT: student}
    models[BARE] = WithTeacher(student, plain)
    notes: dict[str, str] = {}
    try:
        loss = mmrazor.loss('cwd.ChannelWiseDivergence', tau=pair.tau, loss_weight=pair.weight)
        models[RAZOR] = RazorStep(student, plain, term.tap, partial(sum_over_maps, loss))
    except mmrazor.NotInstalled as error:
        notes[RAZOR] = str(error)
    models[ONLINE], models[FP32] = online, fp32
    batch = make_batch(cfg.default_scope, count, height, width)
    data = dict.fromkeys(models, batch)
    maps = tapped(online, term.tap, batch, device)
    try:
        models[CACHED], data[CACHED] = cached(student, cfg, batch, maps, device)
    except CacheError as error:
        notes[CACHED] = str(error)
    for model in models.values():
        model.to(device).train()
    parameters = [p for p in student.parameters() if p.requires_grad]
    wrapper = OptimWrapper if device.type == 'cpu' else AmpOptimWrapper
    optimizer = wrapper(torch.optim.SGD(parameters, lr=1e-5, momentum=0.9, weight_decay=1e-4))
    teachers = {BARE: plain, RAZOR: plain}
    teachers |= {name: models[name].teachers['teacher'].model for name in (ONLINE, FP32)}
    return Bench(models, data, notes, teachers, optimizer, maps)


def cached(
    student: nn.Module, cfg: Config, batch: dict, maps: Sequence[Tensor], device: torch.device
) -> tuple[Distiller, dict]:
    """A Distiller with a cached teacher, and a batch that carries its maps.

    The cache on disk describes the teacher and holds no image: reading records is the work of the
    processes that load data, and no part of a step.
    """
    (term,) = cfg.model.distill.values()
    tap, preprocessor = Tap.parse(term.tap), student.data_preprocessor
    views = [View(Taps((tap,)))]
    with quiet():
        teacher = OnlineTeacher(cfg.model.teacher.config, None)
    preview = teacher.prepare(Trial(None, preprocessor, DryRun()), views, device)
    meta = description(teacher, dict(config=cfg.model.teacher.config), preview, views, ())
    about = meta['taps']
    for name, values in padding_values(teacher, preprocessor, views, preview.size).items():
        about[name]['fill'] = values
    meta |= dict(loading=None, scale=None, scale_given=False, dtype='float16', top_k=None)
    meta['mirrored'] = False
    samples = []
    for number, sample in enumerate(batch['data_samples']):
        element = BaseDataElement()
        for place, one in enumerate(maps):
            element.set_field(one[number].cpu(), map_key(tap, place))
        sample = sample.clone()
        sample.set_field(element, field_of('teacher'))
        samples.append(sample)
    path = str(Path(tempfile.mkdtemp(), 'cache'))
    with CacheWriter(path, meta) as writer:
        writer.finish()
    with quiet():
        config = dict(type='mmkd_plugin.CachedTeacher', path=path)
        model = Distiller(student, config, dict(cfg.model.distill))
    shutil.rmtree(Path(path).parent)  # what it says of the teacher has been read
    return model, dict(batch, data_samples=samples)


def tapped(online: Distiller, tap: str, batch: dict, device: torch.device) -> list[Tensor]:
    """What the teacher's tap gives for a batch."""
    data = online.to(device).data_preprocessor(batch, True)
    (teacher,) = online.teachers.values()
    values = teacher.read(data['inputs'], data['data_samples'], [Tap.parse(tap)])
    return as_list(values[Tap.parse(tap)])


def make_batch(scope: str, count: int, height: int, width: int) -> dict:
    """Made-up images with labels, as a data loader gives them."""
    generator = torch.Generator().manual_seed(0)

    def numbers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    images = [numbers(0, 256, 3, height, width).to(torch.uint8) for _ in range(count)]
    samples = [_labels(scope, height, width, numbers) for _ in images]
    shape = (height, width)
    for sample in samples:
        sample.set_metainfo(
            dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape)
        )
        sample.set_metainfo(dict(scale_factor=(1.0, 1.0), img_path='', img_id=0, flip=False))
    return dict(inputs=images, data_samples=samples)


def _labels(scope: str, height: int, width: int, numbers: Callable[..., Tensor]) -> BaseDataElement:
    if scope == 'mmseg':
        from mmseg.structures import SegDataSample

        blocks = numbers(0, 19, 1, -(-height // 32), -(-width // 32))
        label = blocks.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, :height, :width]
        return SegDataSample(gt_sem_seg=PixelData(data=label))
    from mmdet.structures import DetDataSample

    corners = numbers(0, min(height, width) // 2, 7, 2).float()
    sides = numbers(min(height, width) // 8, min(height, width) // 2, 7, 2).float()
    boxes = torch.cat([corners, corners + sides], 1)
    return DetDataSample(gt_instances=InstanceData(bboxes=boxes, labels=numbers(0, 80, 7)))


def without_downloads(config: Any, size: tuple[int, int]) -> None:
    """Leaves out what would be downloaded, sets the size of crops, and needs no other process."""
    for key, value in list(config.items()):
        downloads = isinstance(value, dict) and value.get('type') == 'Pretrained'
        if downloads or key in ('pretrained', 'checkpoint'):
            config[key] = None
        elif (key, value) == ('type', 'SyncBN'):
            config[key] = 'BN'
        elif key == 'data_preprocessor' and 'size' in value:
            value['size'] = size
        else:
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict):
                    without_downloads(item, size)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps plans and warnings about random weights off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        logger = MMLogger.get_current_instance()
        logger.setLevel(logger.level)  # mmengine's loggers remember what was off; this clears it


def measure(
    pair: Pair,
    device: torch.device,
    seconds: float,
    quick: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Rounds:
    """Measures the steps of one pair in turns."""
    bench = set_up(pair, device, quick)
    found = Rounds(pair.title, '×'.join(map(str, batch_shape(pair, device, quick))))
    found.notes = bench.notes
    for variant in bench.models:
        bench.step(variant)
    calls = {variant: lambda v=variant: bench.step(v) for variant in bench.models}
    measured = take_turns(calls, device, seconds, clock)
    found.seconds = {variant: measured[variant] for variant in VARIANTS if variant in measured}
    return found


def batch_shape(pair: Pair, device: torch.device, quick: bool) -> tuple[int, ...]:
    """(N, 3, H, W)."""
    count, *sides = pair.size(device, quick)
    return (count, 3, *sides)
