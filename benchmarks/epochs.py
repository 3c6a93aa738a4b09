"""``epoch``: an epoch with its data loading, of a student alone, with teacher and with cache."""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from benchmarks.gains.augmenting import zoo
from benchmarks.measure import Rounds, take_turns
from benchmarks.steps import CONFIGS, ONLINE, STUDENT, quiet
from mmkd_plugin import stack
from mmkd_plugin.cache.wiring import wire
from mmkd_plugin.cli import read_config
from mmkd_plugin.distiller import Distiller
from mmkd_plugin.registry import MODELS

VIEWS = 'ours, cached views'
VARIANTS = (STUDENT, ONLINE, VIEWS)
TOOLS = CONFIGS.parent / 'tools'
#: Scenes in an epoch.
SCENES, QUICK_SCENES = 48, 8


@dataclass(frozen=True)
class Small:
    """A small teacher and student.

    Args:
        title (str): What tables call them.
        config (str): The recipe, below ``configs/``.
    """

    title: str
    config: str


SMALL = {
    'segmentation': Small(
        'Semantic FPN R18 w32 → w16',
        'pixel_wise/pixel-wise-logits_fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py',
    ),
    'detection': Small(
        'RetinaNet R18 w32 → w16',
        'cwd/cwd-neck_retinanet_r18-w32_retinanet_r18-w16_fpn_1k_digit-scenes-128x128.py',
    ),
}


@dataclass
class Epochs:
    """The variants of one pair, ready to train for an epoch.

    Args:
        models (dict[str, BaseModel]): By variant; all have the same student.
        loaders (dict[str, DataLoader]): Their data. This process loads them.
        optimizer (OptimWrapper): That of the student.
    """

    models: dict[str, BaseModel]
    loaders: dict[str, DataLoader]
    optimizer: OptimWrapper

    def run(self, variant: str) -> None:
        """Loads and learns each batch once."""
        for batch in self.loaders[variant]:
            self.models[variant].train_step(batch, self.optimizer)


@contextmanager
def set_up(small: Small, device: torch.device, quick: bool = False) -> Iterator[Epochs]:
    """Makes scenes, writes a cache of two views of them, and builds the variants.

    The images have the augmentation of the model zoo. All weights are random.
    """
    stack.prepare()
    cfg = read_config(str(CONFIGS / small.config))
    zoo(cfg)
    init_default_scope(cfg.default_scope)
    cfg.model.teacher = dict(config=cfg.model.teacher.config, checkpoint=None)
    loader = cfg.train_dataloader
    loader.update(num_workers=0, persistent_workers=False)
    loader.sampler = dict(type='DefaultSampler', shuffle=True)
    with tempfile.TemporaryDirectory() as folder:
        scenes, cache = Path(folder, 'scenes'), Path(folder, 'cache')
        count = QUICK_SCENES if quick else SCENES
        loader.dataset.data_root = f'{scenes}/'
        loader.batch_size = min(loader.batch_size, count)
        for option in (
            ['make_digit_scenes.py', '--out', scenes, '--train', count, '--val', 1],
            ['cache_teacher.py', Path(folder, 'config.py'), '--out', cache, '--views', 2,
             '--dtype', 'compact', '--workers', 0],
        ):  # fmt: skip
            cfg.dump(Path(folder, 'config.py'))
            command = [sys.executable, '-W', 'ignore', TOOLS / option[0], *option[1:]]
            done = subprocess.run([*map(str, command)], capture_output=True, text=True)
            if done.returncode:
                raise OSError(done.stderr.strip() or done.stdout.strip())
        cached = copy.deepcopy(cfg)
        cached.model.teacher = dict(type='mmkd_plugin.CachedTeacher', path=str(cache))
        wire(cached)
        with quiet(), DefaultScope.overwrite_default_scope(cfg.default_scope):
            student = MODELS.build(cfg.model.student)
            models = {STUDENT: student}
            for name, one in ((ONLINE, cfg), (VIEWS, cached)):
                models[name] = Distiller(student, dict(one.model.teacher), dict(one.model.distill))
            loaders = {
                name: Runner.build_dataloader(one.train_dataloader, seed=0)
                for name, one in ((STUDENT, cfg), (ONLINE, cfg), (VIEWS, cached))
            }
            for model in models.values():
                model.to(device).train()
            parameters = [p for p in student.parameters() if p.requires_grad]
            optimizer = OptimWrapper(torch.optim.SGD(parameters, lr=1e-5, momentum=0.9))
            yield Epochs(models, loaders, optimizer)


def measure(
    small: Small,
    device: torch.device,
    seconds: float,
    quick: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Rounds:
    """Measures epochs of one pair in turns."""
    with set_up(small, device, quick) as epochs:
        size = len(epochs.loaders[STUDENT].dataset)
        found = Rounds(small.title, f'{size} scenes of 128×128')
        for variant in VARIANTS:
            epochs.run(variant)
        calls = {variant: lambda v=variant: epochs.run(v) for variant in VARIANTS}
        found.seconds = take_turns(calls, device, seconds, clock)
    return found
