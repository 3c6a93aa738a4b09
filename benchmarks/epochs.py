"""``epoch``: an epoch with its data loading: student alone, with teacher, with a cache of views.

A cache costs what it takes to draw and read its views, and every distillation what its losses take:
the student that loads the views and learns nothing from them tells the two apart.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from benchmarks.gains.augmenting import zoo
from benchmarks.measure import Rounds, take_turns
from benchmarks.steps import CONFIGS, ONLINE, PAIRS, STUDENT, quiet, without_downloads
from mmkd_plugin import stack
from mmkd_plugin.cache.wiring import wire
from mmkd_plugin.cache_writing import Settings, Writing
from mmkd_plugin.cli import read_config
from mmkd_plugin.distiller import Distiller
from mmkd_plugin.registry import MODELS
from mmkd_plugin.terms.watch import LOOKS
from mmkd_plugin.words import type_name

READS, VIEWS, WRITES = 'student, views read', 'ours, cached views', 'a view written'
VARIANTS = (STUDENT, ONLINE, READS, VIEWS)
SCENES_TOOL = CONFIGS.parent / 'tools' / 'make_digit_scenes.py'
#: Scenes in an epoch.
SCENES, FEW_SCENES = 48, 4


@dataclass(frozen=True)
class Small:
    """A teacher, a student and scenes that they see.

    Args:
        title (str): What tables call them.
        config (str): The recipe of the scenes, below ``configs/``.
        models (str): The recipe that the models come from. Defaults to nothing: the same.
        size (int): Side of the scenes, pixels. Defaults to 128.
        batch (int): Images in a batch. Defaults to that of the recipe.
    """

    title: str
    config: str
    models: str = ''
    size: int = 128
    batch: int | None = None

    @property
    def scenes(self) -> int:
        """How many scenes are in an epoch: few for models that take long."""
        return FEW_SCENES if self.models else SCENES


_SCENES = dict(
    segmentation='pixel_wise/pixel-wise-logits_fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py',
    detection='cwd/cwd-neck_retinanet_r18-w32_retinanet_r18-w16_fpn_1k_digit-scenes-128x128.py',
)
SMALL = {
    'segmentation': Small('Semantic FPN R18 w32 → w16', _SCENES['segmentation']),
    'detection': Small('RetinaNet R18 w32 → w16', _SCENES['detection']),
    'pspnet': Small(
        PAIRS['pspnet'].title, _SCENES['segmentation'], PAIRS['pspnet'].config, size=256, batch=2
    ),
}


def config_of(small: Small) -> Config:
    """The recipe with the augmentation of the model zoo, and random weights."""
    cfg = read_config(str(CONFIGS / small.config))
    if small.models:
        cfg.model = read_config(str(CONFIGS / small.models)).model
        without_downloads(cfg.model, (small.size, small.size))
        cfg.crop_size = (small.size, small.size)
        for step in cfg.val_dataloader.dataset.pipeline:
            if type_name(step.type) == 'Resize':
                step.scale = (small.size, small.size)
    zoo(cfg)
    cfg.model.teacher = dict(config=cfg.model.teacher.config, checkpoint=None)
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    cfg.train_dataloader.batch_size = small.batch or cfg.train_dataloader.batch_size
    return cfg


@dataclass
class Epochs:
    """The variants of one pair, ready to train for an epoch.

    Args:
        models (dict[str, BaseModel]): By variant; all have the same student.
        loaders (dict[str, DataLoader]): Their data. This process loads them.
        optimizer (OptimWrapper): That of the student.
        more_views (Callable): Prepares to write a view of each image, and returns what writes it.
    """

    models: dict[str, BaseModel]
    loaders: dict[str, DataLoader]
    optimizer: OptimWrapper
    more_views: Callable[[], Callable[[], None]] = field(repr=False)

    def run(self, variant: str) -> None:
        """Loads and learns each batch once."""
        for batch in self.loaders[variant]:
            self.models[variant].train_step(batch, self.optimizer)


def make_scenes(folder: Path, count: int, size: int) -> None:
    """Makes scenes in a folder."""
    options = ['--out', folder, '--train', count, '--val', 1, '--size', size]
    command = [sys.executable, '-W', 'ignore', SCENES_TOOL, *options]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr.strip() or done.stdout.strip())


def writing(cfg: Config, path: Path, views: int) -> Callable[[], None]:
    """Prepares to write a cache of so many views of each image; returns what writes it."""
    settings = Settings(str(path), dtype='compact', views=views, workers=0)
    with quiet():
        job = Writing(copy.deepcopy(cfg), dict(cfg.model.teacher, name='teacher'), settings)

    def write() -> None:
        with quiet(), contextlib.redirect_stdout(io.StringIO()):
            job.write()

    return write


@contextmanager
def set_up(small: Small, device: torch.device, quick: bool = False) -> Iterator[Epochs]:
    """Makes scenes, writes a cache of two views of them, and builds the variants.

    The images have the augmentation of the model zoo. All weights are random.
    """
    stack.prepare()
    cfg = config_of(small)
    init_default_scope(cfg.default_scope)
    loader = cfg.train_dataloader
    with tempfile.TemporaryDirectory() as folder:
        scenes, cache = Path(folder, 'scenes'), Path(folder, 'cache')
        count = FEW_SCENES if quick else small.scenes
        make_scenes(scenes, count, small.size)
        loader.dataset.data_root = f'{scenes}/'
        loader.batch_size = min(loader.batch_size, count)
        writing(cfg, cache, 2)()
        cached = copy.deepcopy(cfg)
        cached.model.teacher = dict(type='mmkd_plugin.CachedTeacher', path=str(cache))
        wire(cached)
        with quiet(), DefaultScope.overwrite_default_scope(cfg.default_scope):
            student = MODELS.build(cfg.model.student)
            models = {STUDENT: student, READS: student}
            for name, one in ((ONLINE, cfg), (VIEWS, cached)):
                models[name] = Distiller(student, dict(one.model.teacher), dict(one.model.distill))
            loaders = {
                name: Runner.build_dataloader(one.train_dataloader, seed=0)
                for name, one in ((STUDENT, cfg), (ONLINE, cfg), (READS, cached), (VIEWS, cached))
            }
            for model in models.values():
                model.to(device).train()
            for model in (models[ONLINE], models[VIEWS]):
                for term in model.distill.values():
                    term.watch.seen = LOOKS[-1] + 1  # most of a run lies behind the watched steps
            parameters = [p for p in student.parameters() if p.requires_grad]
            optimizer = OptimWrapper(torch.optim.SGD(parameters, lr=1e-5, momentum=0.9))
            others = (Path(folder, f'written-{number}') for number in itertools.count())
            yield Epochs(models, loaders, optimizer, lambda: writing(cfg, next(others), 1))


def measure(
    small: Small,
    device: torch.device,
    seconds: float,
    quick: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Rounds:
    """Measures epochs of one pair in turns, and then the writing of a view of each scene."""
    with set_up(small, device, quick) as epochs:
        size = len(epochs.loaders[STUDENT].dataset)
        found = Rounds(small.title, f'{size} scenes of {small.size}×{small.size}')
        for variant in VARIANTS:
            epochs.run(variant)
        calls = {variant: lambda v=variant: epochs.run(v) for variant in VARIANTS}
        found.seconds = take_turns(calls, device, seconds, clock)
        found.seconds[WRITES] = []
        for _ in range(3):
            write = epochs.more_views()
            start = clock()
            write()
            found.seconds[WRITES].append(clock() - start)
    return found
