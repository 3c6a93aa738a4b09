"""Watch a small model learn from a large one on DigitScenes: table and picture.

It makes the data, trains a teacher, the student alone and the distilled student with
``tools/train.py``, prints a table and draws ``report.png``. The runs are shorter than those of the
configs. Run it again after an interruption: it goes on.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Patch, Rectangle
from mmengine.config import Config
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.gains.running import Place, test
from benchmarks.gains.settings import run_config
from benchmarks.gains.training import (
    RunError,
    last_checkpoint,
    make_digit_scenes,
    scalars,
)
from benchmarks.gains.training import train as train_with_tool
from mmkd_plugin.cli import UsageError, check_folder, check_number, plain_errors
from mmkd_plugin.cores import Cores, free_cores, threads_for
from mmkd_plugin.saving import replacing, write_text
from mmkd_plugin.stack import safe_loading

ROOT = Path(__file__).resolve().parents[1]
ROWS = 4  # scenes in the report
SAVED = 50  # iterations between checkpoints


@dataclass(frozen=True)
class Task:
    """What the demo trains and how it is measured.

    Args:
        teacher, student, distilled (str): Configs below ``configs/``.
        metric (str): Name of the score among mmengine's scalars.
        title (str): Name of the score in table and plot.
        percent (float): Factor that turns the score into a percentage.
        length (float): Iterations and schedules of all three, in multiples of the configs'.
            Defaults to 1.
        batch_size (int): Images in a batch. Defaults to 4.
        weights (Path, optional): A trained teacher, with its origin in a JSON file beside it.
            Defaults to None: it is trained.
    """

    teacher: str
    student: str
    distilled: str
    metric: str
    title: str
    percent: float
    length: float = 1.0
    batch_size: int = 4
    weights: Path | None = None


TASKS = {
    'segmentation': Task(
        teacher='digit_scenes/fpn_r18-w32_1k_digit-scenes-128x128.py',
        student='digit_scenes/fpn_r18-w16_1k_digit-scenes-128x128.py',
        distilled='cwd/cwd-logits_fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py',
        metric='mIoU',
        title='mIoU',
        percent=1,
        length=1.0,
    ),
    'detection': Task(
        teacher='digit_scenes/retinanet_r18-w32_fpn_1k_digit-scenes-128x128.py',
        student='digit_scenes/retinanet_r18-w16_fpn_1k_digit-scenes-128x128.py',
        distilled='cwd/cwd-neck_retinanet_r18-w32_retinanet_r18-w16_fpn_1k_digit-scenes-128x128.py',
        metric='coco/bbox_mAP',
        title='bbox mAP',
        percent=100,
        length=0.8,
    ),
}
#: Half as long, with a teacher that ships with the tool.
QUICK = {
    'segmentation': replace(
        TASKS['segmentation'],
        teacher='digit_scenes/fpn_r18-w20_1k_digit-scenes-128x128.py',
        weights=Path(__file__).with_name('demo_teacher') / 'fpn_r18-w20_digit-scenes.pth',
        length=0.5,
    ),
}
RUNS = ('teacher', 'student', 'distilled')
NAMES = {'teacher': 'teacher', 'student': 'student alone', 'distilled': 'distilled student'}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--task', choices=TASKS, default='segmentation')
    parser.add_argument(
        '--quick',
        action='store_true',
        help='shorter, with a trained teacher of segmentation that comes with this tool',
    )
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo[-detection][-quick]')
    parser.add_argument('--seed', type=int, default=0, help='seed of all three runs (0)')
    args = parser.parse_args()
    if args.quick and args.task not in QUICK:
        parser.error(f'--quick has a teacher for --task {", ".join(QUICK)} alone')
    task = (QUICK if args.quick else TASKS)[args.task]
    words = ['demo', *[args.task] * (args.task != 'segmentation'), *['quick'] * args.quick]
    folder = args.work_dir or Path('work_dirs', '-'.join(words))
    console = Console()
    with safe_loading(), plain_errors():
        check_number(args.seed, '--seed', 0, 2**32 - 1)
        check_folder(folder, '--work-dir')
        folder.mkdir(parents=True, exist_ok=True)
        try:
            run_demo(args.task, task, folder, args.seed, console)
        except RunError as error:
            raise UsageError(str(error)) from None
        except KeyboardInterrupt:
            raise UsageError('stopped; the same command goes on from here') from None


def run_demo(name: str, task: Task, folder: Path, seed: int, console: Console) -> None:
    make_digit_scenes()
    checkpoints: dict[str, Path] = {'teacher': task.weights} if task.weights else {}
    trained = [run for run in RUNS if run not in checkpoints]
    for number, run in enumerate(trained, 1):
        config = ROOT / 'configs' / getattr(task, run)
        settings: dict[str, Any] = dict(seed=seed, length=task.length, batch_size=task.batch_size)
        if run == 'distilled':
            settings['teachers'] = [(ROOT / 'configs' / task.teacher, checkpoints['teacher'])]
        title = f'[{number}/{len(trained)}] {NAMES[run]}'
        checkpoints[run] = train(config, folder / run, settings, title, console)
    scores = {run: score(folder / run, task) for run in trained}
    if task.weights:
        scores['teacher'] = json.loads(task.weights.with_suffix('.json').read_text())[task.metric]
    students = {run: 'student' if run == 'distilled' else run for run in RUNS}
    models = {
        run: load(name, ROOT / 'configs' / getattr(task, students[run]), checkpoints[run])
        for run in RUNS
    }
    console.print(results(task, folder, scores, models))
    console.print(message(task, scores))
    report = folder / 'report.png'
    draw(name, task, scores, models, report)
    console.print(f'Pictures and scores: {report}')


def train(
    config: Path, folder: Path, settings: dict[str, Any], title: str, console: Console
) -> Path:
    """Trains with ``tools/train.py`` unless it is done, and shows how far it is.

    Args:
        config (Path): The config.
        folder (Path): Its work dir; a run that was cut off goes on from its last checkpoint.
        settings (dict): Arguments of :func:`shorter`.
        title (str): Name of the run on the screen.
        console (Console): Where to show it.

    Returns:
        Path: The last checkpoint.
    """
    asked = json.loads(json.dumps({'config': config.name, **settings}, default=str))
    if state := done_before(folder, asked):
        console.print(f'{title}: done before, {state["seconds"] / 60:.1f} min')
        return Path(state['checkpoint'])
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / 'config.py', shorter(config, **settings).pretty_text)
    environment = beside_others(console)
    with progress_bar(console) as progress:
        bar = progress.add_task(title, total=None, note='starting')
        shown = 0  # where no bar can be drawn, a line now and then

        def watch(done: int, total: int, loss: float) -> None:
            nonlocal shown
            note = f'loss {loss:.2f}'
            progress.update(bar, completed=done, total=total, note=note)
            if not console.is_terminal and (done - shown >= 100 or not shown):
                shown = done
                console.print(f'{title}: {shown} of {total} iterations, {note}')

        try:
            used = train_with_tool(folder / 'config.py', folder, [], watch, environment=environment)
        except RunError as error:
            raise RunError(
                f'{title} failed: {error}\n'
                'After mending the cause, the same command goes on from the last checkpoint.'
            ) from None
    checkpoint = last_checkpoint(folder)
    done = {
        'asked': asked,
        'checkpoint': str(checkpoint),
        'seconds': used.seconds,
        'cpu_seconds': used.cpu_seconds,
    }
    write_text(folder / 'done.json', json.dumps(done))
    return checkpoint


def shorter(config: Path, batch_size: int, **settings: Any) -> Config:
    """The config of a run with smaller batches, saved every :data:`SAVED` iterations.

    Args:
        config (Path): The recipe.
        batch_size (int): Images in a batch.
        **settings: Arguments of :func:`run_config`.
    """
    cfg = run_config(config, **settings)
    cfg.train_dataloader.batch_size = batch_size
    cfg.default_hooks.checkpoint.interval = min(SAVED, cfg.train_cfg.max_iters)
    return cfg


def beside_others(console: Console) -> dict[str, str]:
    """Looks for a second at what other programs do with the cores.

    Returns:
        dict[str, str]: Variables for a training; empty if the cores are free, or if the user has
        chosen the number of threads.
    """
    if 'OMP_NUM_THREADS' in os.environ:
        return {}
    before = Cores.now()
    time.sleep(1)
    after = Cores.now()
    free = free_cores(before, after)
    environment = environment_for(free, torch.get_num_threads())
    if environment:
        variables = ' '.join(f'{key}={value}' for key, value in environment.items())
        console.print(f'{free:.1f} of {after.count} cores are free, so this takes {variables}')
    return environment


def environment_for(free: float, wanted: int) -> dict[str, str]:
    """The variables for a training on cores that others use too.

    Args:
        free (float): Cores that are free.
        wanted (int): Threads of a training that has the cores for itself.
    """
    threads = threads_for(free, wanted)
    if threads == wanted:
        return {}
    return {'OMP_NUM_THREADS': str(threads), 'OMP_WAIT_POLICY': 'PASSIVE'}


def done_before(folder: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Reads the note of a run that has ended; None if it has not, or its checkpoint is gone.

    Raises:
        RunError: If the run had other settings.
    """
    file = folder / 'done.json'
    if not file.exists():
        return None
    state = json.loads(file.read_text())
    if state['asked'] != asked:
        raise RunError(
            f'{folder} holds a run with other settings ({state["asked"]}); '
            'give another --work-dir, or remove the folder'
        )
    return state if Path(state['checkpoint']).exists() else None


def progress_bar(console: Console) -> Progress:
    """Makes a bar with the time that is left."""
    return Progress(
        TextColumn('{task.description:<24}'),
        BarColumn(bar_width=30),
        TextColumn('{task.percentage:>3.0f}%'),
        TimeElapsedColumn(),
        TextColumn('left'),
        TimeRemainingColumn(),
        TextColumn('{task.fields[note]}'),
        console=console,
        disable=not console.is_terminal,
    )


def score(folder: Path, task: Task) -> float:
    """Reads the last validation score, in percent."""
    points, config = scalars(folder, task.metric), folder / 'config.py'
    if points:
        return points[-1][1] * task.percent
    if not config.is_file():
        raise RunError(f'{folder} has no {task.title}; remove it and run the command again')
    # killed after the last save, and before its validation had ended
    found = test(folder, last_checkpoint(folder), Config.fromfile(config), 'val', Place(folder, {}))
    return found * task.percent


def message(task: Task, scores: dict[str, float]) -> str:
    """Says in a sentence how much of the gap is closed."""
    gap = scores['teacher'] - scores['student']
    gain = scores['distilled'] - scores['student']
    if gap <= 0:
        return 'The teacher is no better than the student here, so there is no gap to close.'
    return (
        f'Distillation {"closed" if gain >= 0 else "widened"} {abs(gain) / gap:.0%} of the gap '
        f'between student and teacher ({gain:+.2f} of {gap:.2f} {task.title}).'
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the output of the libraries while they load and predict."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def load(name: str, config: Path, checkpoint: Path) -> Any:
    """Builds a model with its library's own function, which reads a distilled student too."""
    with quiet():
        if name == 'segmentation':
            from mmseg.apis import init_model as init
        else:
            from mmdet.apis import init_detector as init
        return init(str(config), str(checkpoint), device='cpu')


def results(task: Task, folder: Path, scores: dict, models: dict) -> Table:
    """Makes the table of the three runs."""
    iterations = Config.fromfile(folder / 'student' / 'config.py').train_cfg.max_iters
    table = Table(title=f'DigitScenes, validation after {iterations} iterations')
    for column in ('', task.title, 'parameters', 'training time', 'processor time'):
        table.add_column(column, justify='left' if not column else 'right')
    for run in RUNS:
        cost = ['trained before', '']
        if run != 'teacher' or task.weights is None:
            used = json.loads((folder / run / 'done.json').read_text())
            cost = [f'{used["seconds"] / 60:.1f} min', f'{used["cpu_seconds"]:.0f} s']
        millions = sum(p.numel() for p in models[run].parameters()) / 1e6
        table.add_row(NAMES[run], f'{scores[run]:.2f}', f'{millions:.2f} M', *cost)
    return table


def draw(name: str, task: Task, scores: dict, models: dict, path: Path) -> None:
    """Draws scenes with ground truth and predictions side by side, and the scores below."""
    files = sorted(Path('data/digit_scenes/img_dir/val').glob('*.png'))[:ROWS]
    show = show_masks if name == 'segmentation' else show_boxes
    truth = 'ground truth' + ('\n(white: ignored)' if name == 'segmentation' else '')
    shown = {
        'image': lambda axes, file: axes.imshow(plt.imread(file)),
        truth: lambda axes, file: show(axes, file, None),
        **{
            f'{NAMES[run]}\n{scores[run]:.1f} {task.title}': (
                lambda axes, file, run=run: show(axes, file, models[run])
            )
            for run in ('student', 'distilled', 'teacher')
        },
    }
    plt.switch_backend('agg')  # draws into a file, so no screen is needed
    figure = plt.figure(figsize=(11, 2.15 * ROWS + 2.6), layout='constrained')
    pictures, plot = figure.subfigures(2, 1, height_ratios=[2.15 * ROWS + 0.3, 2.0])
    grid = pictures.subplots(ROWS, len(shown))
    for axes, title in zip(grid[0], shown, strict=True):
        axes.set_title(title, fontsize=11)
    for row, file in zip(grid, files, strict=True):
        for axes, paint in zip(row, shown.values(), strict=True):
            with quiet():
                paint(axes, file)
            axes.set_axis_off()
    digits = [Patch(color=plt.get_cmap('tab10')(n), label=str(n)) for n in range(10)]
    pictures.legend(handles=digits, ncols=10, loc='outside lower center', frameon=False)
    axes = plot.subplots()
    colors = {'teacher': 'tab:gray', 'distilled': 'tab:blue', 'student': 'tab:orange'}
    bars = axes.barh(
        [NAMES[run] for run in colors],
        [scores[run] for run in colors],
        color=list(colors.values()),
        height=0.62,
    )
    axes.bar_label(bars, fmt='%.1f', padding=4)
    axes.set_xlabel(f'validation {task.title} (%)')
    axes.set_title(message(task, scores), fontsize=11)
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='x', alpha=0.3)
    axes.set_axisbelow(True)
    with replacing(path) as (beside,):
        figure.savefig(beside, format='png', dpi=110)
    plt.close(figure)


def show_masks(axes: Any, file: Path, model: Any) -> None:
    """Paints a mask in the data set's colours: the ground truth, or a model's prediction."""
    from PIL import Image

    truth = Image.open(str(file).replace('img_dir', 'ann_dir'))
    palette = np.array(truth.getpalette(), dtype=np.uint8).reshape(-1, 3)
    if model is None:
        labels = np.array(truth)
    else:
        from mmseg.apis import inference_model

        labels = inference_model(model, str(file)).pred_sem_seg.data[0].cpu().numpy()
    axes.imshow(palette[labels])


def show_boxes(axes: Any, file: Path, model: Any) -> None:
    """Draws boxes on the image: the ground truth, or a model's with a score over 0.4."""
    axes.imshow(plt.imread(file))
    if model is None:
        instances = json.loads(Path('data/digit_scenes/annotations/instances_val.json').read_text())
        image = next(i for i in instances['images'] if i['file_name'] == file.name)
        boxes = [
            ((x, y, x + w, y + h), annotation['category_id'] - 1)
            for annotation in instances['annotations']
            if annotation['image_id'] == image['id']
            for x, y, w, h in [annotation['bbox']]
        ]
    else:
        from mmdet.apis import inference_detector

        found = inference_detector(model, str(file)).pred_instances
        found = found[found.scores > 0.4]
        boxes = list(zip(found.bboxes.tolist(), found.labels.tolist(), strict=True))
    for (left, top, right, bottom), label in boxes:
        color = plt.get_cmap('tab10')(label)
        corner = (left, top)
        axes.add_patch(
            Rectangle(corner, right - left, bottom - top, fill=False, color=color, linewidth=1.4)
        )
        axes.text(left, top, str(label), color='white', fontsize=7, va='top',
                  bbox=dict(facecolor=color, edgecolor='none', pad=0.6))  # fmt: skip


if __name__ == '__main__':
    main()
