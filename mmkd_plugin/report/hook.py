"""ReportHook: a page about each run, at its end."""

from __future__ import annotations

import json
import logging
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmkd_plugin.cli import UsageError, stages
from mmkd_plugin.distiller import Distiller
from mmkd_plugin.parts import STEP, now
from mmkd_plugin.registry import HOOKS
from mmkd_plugin.report.agreement import agreement_of
from mmkd_plugin.report.page import FILE, write_report
from mmkd_plugin.report.reading import FACTS, read_run
from mmkd_plugin.saving import write_text
from mmkd_plugin.taps.example import random_state_kept
from mmkd_plugin.visualization.figure import draw, save
from mmkd_plugin.visualization.hook import gallery_of
from mmkd_plugin.visualization.page import THUMB, file_name
from mmkd_plugin.visualization.panels import check_panels
from mmkd_plugin.words import first_line, some

#: Iterations of a session before the first that is measured, and from one to the next.
WARM_UP, EVERY = 10, 100

LIBRARIES = ('mmkd_plugin', 'torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg')


@HOOKS.register_module()
class ReportHook(Hook):
    """Writes ``report.html`` to the work dir at the end of a training.

    ``tools/train.py`` adds it to each run; ``report = False`` in the config leaves it out. It
    measures the parts of one step in a hundred, and changes nothing in the training.

    Args:
        images (int): Number of validation images that are drawn for student and teachers, spread
            evenly; 0 draws none. Defaults to 2.
        panels (Sequence[str]): What is drawn of them: some of ``'predictions'``,
            ``'attention'``, ``'channels'`` and ``'explanations'``. Defaults to
            ``('predictions',)``.

    Raises:
        ValueError: If ``images`` is no whole number from 0 on, or there is no such panel.

    Examples:
        >>> ReportHook(images=4).panels
        ('predictions',)
    """

    priority = 'LOWEST'  # after what logs and saves

    def __init__(self, images: int = 2, panels: Sequence[str] = ('predictions',)) -> None:
        if not isinstance(images, int) or isinstance(images, bool) or images < 0:
            raise ValueError(
                f'ReportHook.images: expected a whole number from 0 on, got {images!r}'
            )
        check_panels(panels)
        self.images = images
        self.panels = panels
        self.facts: dict[str, Any] = {}
        self._sums: dict[str, float] = {}
        self._measured = 0
        self._seen = 0
        self._start = 0.0

    def before_train(self, runner: Runner) -> None:
        """Notes what only a running program knows.

        Args:
            runner (Runner): The runner.
        """
        model = _unwrapped(runner.model)
        self.facts = dict(
            command=[sys.executable, *sys.orig_argv[1:]],
            seed=runner.seed,
            device=_device(),
            versions=_versions(),
            max_iters=runner.max_iters,
            plan=getattr(model, 'plan', None),
            validations=[],
        )
        self._write(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Starts to measure, if it is the turn of this iteration.

        Args:
            runner (Runner): The runner.
            batch_idx (int): Number of the batch in the epoch.
            data_batch (Any): The batch; not used. Defaults to None.
        """
        self._seen += 1
        if self._seen % EVERY == WARM_UP:
            STEP.start()
            self._start = now()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Ends to measure.

        Args:
            runner (Runner): The runner.
            batch_idx (int): Number of the batch in the epoch.
            data_batch (Any): The batch; not used. Defaults to None.
            outputs (Any): The losses; not used. Defaults to None.
        """
        if self._seen % EVERY != WARM_UP:
            return
        whole = now() - self._start
        parts = STEP.stop()
        parts['backward and optimizer'] = max(whole - sum(parts.values()), 0.0)
        for name, seconds in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + seconds
        self._measured += 1

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Notes when the run validates, which mmengine logs by epochs alone.

        Args:
            runner (Runner): The runner.
            metrics (dict, optional): The scores; not used. Defaults to None.
        """
        if self.facts:
            self.facts['validations'].append(runner.iter)
            self._write(runner)

    def after_train(self, runner: Runner) -> None:
        """Draws the pictures and writes the page.

        A report that cannot be written is a warning: the training itself has ended well.

        Args:
            runner (Runner): The runner.
        """
        if not is_main_process():
            return
        self.facts |= dict(
            iterations=runner.iter,
            parts=self._sums,
            measured_steps=self._measured,
            peak_bytes=_peak(),
            pictures=[],
        )
        try:
            with stages(3) as begin:
                self._look(runner, begin)
                begin('writing the report')
                file = write_report([read_run(runner.work_dir)], Path(runner.work_dir, FILE))
        except (OSError, UsageError, ValueError) as error:
            self._warn(f'the report could not be written: {first_line(error)}')
        else:
            print_log(f'The report of this run is at {file}.', logger='current')

    def _look(self, runner: Runner, begin: Callable[[str], None]) -> None:
        """Adds what the trained student shows to the facts, and writes them."""
        model = _trained(runner)
        if runner.val_loop is not None and isinstance(model, Distiller):
            with random_state_kept():
                begin('comparing student and teachers')
                self.facts['agreement'] = _agreement(runner, model)
                begin('drawing pictures')
                try:
                    self.facts['pictures'] = self._pictures(runner, model)
                except Exception as error:
                    self._warn(f'the report has no pictures: {first_line(error)}')
        self._write(runner)

    def _pictures(self, runner: Runner, model: Distiller) -> list[dict[str, str]]:
        if not self.images:
            return []
        gallery, scenes = gallery_of(runner, model, self.panels, self.images)
        found = []
        for number, scene in enumerate(scenes):
            for picture in gallery.pictures(scene)[0]:
                if picture.grid is not None:
                    name = f'report/{number}-{file_name(picture.name)}.jpg'
                    Path(runner.log_dir, 'report').mkdir(exist_ok=True)
                    save(draw(picture.grid), Path(runner.log_dir, name), THUMB)
                    title = f'{picture.title}, image {scene.name}'
                    found.append(dict(file=name, title=title, text=picture.text))
        return found

    def _write(self, runner: Runner) -> None:
        if is_main_process():
            folder = Path(runner.log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / FACTS, json.dumps(self.facts, indent=1))

    def _warn(self, text: str) -> None:
        print_log(f'mmkd_plugin.ReportHook: {text}', logger='current', level=logging.WARNING)


def _trained(runner: Runner) -> Any:
    """The model that was validated and saved: with an EMA the averaged one."""
    averaged = (hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook))
    return _unwrapped(next(averaged, runner.model))


def _unwrapped(model: Any) -> Any:
    while is_model_wrapper(model):
        model = model.module
    return model


def _agreement(runner: Runner, model: Distiller) -> list[dict[str, Any]]:
    """What the page says of it; the reason if there is nothing to say."""
    dataset = runner.val_loop.dataloader.dataset
    try:
        return agreement_of(model, dataset, runner.cfg.model.get('teacher') or {})
    except Exception as error:  # whatever a model makes of these images, the training has ended
        return [dict(teacher=some(model.teachers), problem=first_line(error))]


def _versions() -> str:
    """The versions of the libraries that are loaded."""
    loaded = [(name, sys.modules.get(name)) for name in LIBRARIES]
    return ', '.join(f'{name} {module.__version__}' for name, module in loaded if module)


def _device() -> str:
    if torch.cuda.is_available():
        return f'{torch.cuda.device_count()} × {torch.cuda.get_device_name()}'
    return f'CPU, threads: {torch.get_num_threads()}'


def _peak() -> int:
    """The largest memory of this process so far, on the accelerator if there is one, bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024
