"""Programs that write, each on something tiny: what is typed, and what is there in the end."""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load
from PIL import Image
from rich.console import Console

from benchmarks.gains import records, tables
from benchmarks.gains import training as gains_training
from benchmarks.gains.plan import Run, find
from benchmarks.gains.running import Place, perform
from benchmarks.gains.tables import Data, Table
from mmkd_plugin.cache.store import FINISHED, META, CacheError, TeacherCache, close
from mmkd_plugin.checkpoint import read_checkpoint
from mmkd_plugin.cores import Cores
from mmkd_plugin.running.resuming import newest_checkpoint
from mmkd_plugin.training import train
from tests import ddp
from tests.attacks.harness import call_tool, fork
from tests.attacks.runs import segmentation, settings, written
from tests.caches import write_cache
from tests.forks import Forked
from tests.fuzz import models
from tests.runs import config, save_weights, validated
from tests.stock_models import build, cwd
from tests.tools import test_demo, test_from_mmrazor, test_reproduce
from tests.tools.conftest import SEGMENTOR
from tests.tools.dataset_converters import test_bccd, test_camvid
from tests.tools.dataset_converters.conftest import contents
from tests.tools.test_reproduce import HELD_OUT
from tests.tools.tool_runs import load_tool, save_random_weights

LENGTH = 6


class Case(NamedTuple):
    """A program that writes.

    Args:
        folder (Path): Where it writes.
        run (Callable): Runs it from nothing.
        again (Callable): Runs it after a kill, as a user does.
        outcome (Callable): What the folder holds in the end, to be compared.
        check (Callable): Looks at the folder as a kill left it; returns how far it was, which never
            falls.
        ignored (tuple[str, ...]): Endings of files that no program reads again.
        refused (Callable): Whether a folder is one that the program rightly leaves alone, because
            all is there. Defaults to none.
    """

    folder: Path
    run: Callable[[], Any]
    again: Callable[[], Any]
    outcome: Callable[[], Any]
    check: Callable[[], int] = lambda: 0
    ignored: tuple[str, ...] = ()
    refused: Callable[[], bool] = lambda: False


# Training -----------------------------------------------------------------------------------------

OUTPUT = ('.log', '.lock', 'lock')
NOT_READ = (*OUTPUT, '.json')


def everything(data: Path, root: Path) -> dict:
    """Settings of a run that has all that a checkpoint must keep.

    A running, a cached and a self-teacher; connectors, a memory, a queue, random masks, an
    automatic weight, schedules; averaged weights and accumulated gradients.
    """
    large = dict(
        config=models.segmentor(8), checkpoint=save_weights(models.segmentor(8), root / 't.pth')
    )
    scores = dict(cwd=dict(tap=models.SCORES, loss=cwd(tau=4.0, loss_weight=3.0)))
    stored = config(models.distiller(models.segmentor(4), large, scores), data, root, 1)
    path = write_cache(stored, root / 'cache')
    own = models.own
    model = models.distiller(
        models.segmentor(4),
        [
            dict(large, name='large'),
            own('CachedTeacher', path=path, name='stored'),
            own('SelfTeacher', tap='backbone', neck=own('BiFPNSelfTeacher', width=1.5, depth=1),
                head=dict(dropout_ratio=0.0), loss_weight=0.5, name='own'),
        ],
        dict(
            auto=dict(tap=models.SCORES, teacher='large', loss=cwd(tau=4.0, loss_weight='auto')),
            stored=dict(tap=models.SCORES, teacher='stored', loss=cwd(tau=1.0, loss_weight=2.0)),
            masks=dict(
                tap='backbone.conv2', teacher='large', schedule=dict(start=1, ramp=3),
                loss=own('MaskedGenerationLoss', loss_weight=1e-4),
            ),
            memory=dict(
                tap='backbone.conv2', teacher='large',
                loss=own('MemoryContrastLoss', classes=3, pixels=20, regions=5),
            ),
            queue=dict(
                tap='backbone.conv2', teacher='large', connector=own('ConvConnector'),
                loss=own('TokenRelationLoss', queue=7),
            ),
            own=dict(
                tap='backbone.conv2', teacher_tap='neck[1]', teacher='own',
                loss=own('IntraClassVariationLoss'),
            ),
        ),
    )  # fmt: skip
    run = settings(model, data, LENGTH, augment=True)
    run['train_dataloader']['batch_size'] = 3
    run['optim_wrapper']['accumulative_counts'] = 2
    run['custom_hooks'] = [dict(type='EMAHook', momentum=0.1)]
    run['default_hooks'] = dict(
        logger=dict(type='LoggerHook', interval=LENGTH),
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3, max_keep_ckpts=1),
    )
    return run


def trained(folder: Path) -> dict[str, Any]:
    """What a run has come to."""
    last = (folder / 'last_checkpoint').read_text()
    saved = read_checkpoint(last)
    return dict(
        last=last,
        leftovers=sorted(one.name for one in folder.glob('*.tmp')),
        weights=dict(saved['state_dict']),
        beside=saved['state_dict']._metadata['']['mmkd'],
        averaged=dict(saved.get('ema_state_dict', {})),
        optimizer=saved['optimizer'],
        schedules=saved['param_schedulers'],
        iterations=saved['meta']['iter'],
    )


def newest(folder: Path) -> int:
    """The iteration of the newest checkpoint; all that are there are whole."""
    for name in folder.glob('*.pth'):
        read_checkpoint(name)
    with contextlib.suppress(FileNotFoundError):
        assert Path((folder / 'last_checkpoint').read_text()).is_file()
    found = newest_checkpoint(folder)
    return 0 if found is None else found.content['meta']['iter']


def training(root: Path, data: Path) -> Case:
    """A run in one process."""
    file, folder = written(everything(data, root), root / 'run.py'), root / 'work'
    main = load_tool('train').main

    def run() -> None:
        call_tool(main, 'train', [file, '--work-dir', folder, '--resume'])

    return Case(folder, run, run, lambda: trained(folder), lambda: newest(folder), NOT_READ)


def in_two_processes(root: Path, data: Path) -> tuple[Path, Callable[..., int]]:
    """A work dir, and what each of two processes does that train there.

    It takes the rank, and configs of more hooks.
    """
    settings, folder = dict(everything(data, root), report=False), root / 'work'
    distributed = dict(ddp.DISTRIBUTED, work_dir=str(folder), experiment_name='two')
    typed = argparse.Namespace(
        cfg_options=None,
        config='run.py',
        amp=False,
        auto_scale_lr=False,
        resume='auto',
        allow_changes=False,
    )
    (root / 'results').mkdir()

    def work(rank: int, *hooks: dict) -> int:
        cfg = Config({**copy.deepcopy(settings), **distributed})
        cfg.custom_hooks = [*cfg.custom_hooks, *hooks]
        train(cfg, typed, Cores.now())
        return rank

    return folder, work


def training_in_two_processes(root: Path, data: Path) -> Case:
    """A run in two processes, which are killed together."""
    folder, work = in_two_processes(root, data)

    def run() -> None:
        ddp.forked(work, root / 'results')

    return Case(folder, run, run, lambda: trained(folder), lambda: newest(folder), NOT_READ)


# A cache ------------------------------------------------------------------------------------------


def cache(root: Path, data: Path, *options: object) -> Case:
    """Maps and explanations of a teacher; with ``--views`` those of random views."""
    teacher = dict(
        config=models.segmentor(8), checkpoint=save_weights(models.segmentor(8), root / 't.pth')
    )
    explainer = models.own('GradCAM', scores=models.SCORES, max_classes=2, score_thr=0.3, seed=1)
    model = models.distiller(
        models.segmentor(4),
        teacher,
        dict(
            cwd=dict(tap=models.SCORES, loss=cwd(tau=4.0)),
            explain=dict(
                tap='backbone.conv2', explainer=explainer, loss=models.own('ExplanationLoss')
            ),
        ),
    )
    run_settings = settings(model, data, augment='--views' in options)
    file, folder = written(run_settings, root / 'run.py'), root / 'stored'
    main = load_tool('cache_teacher').main
    arguments = [file, '--out', folder, '--workers', 0, *options]

    def run() -> None:
        call_tool(main, 'cache_teacher', arguments)

    def records_there() -> dict[bytes, bytes]:
        close(str(folder))
        with lmdb.open(str(folder), readonly=True, lock=False) as store, store.begin() as reading:
            return {bytes(key): bytes(value) for key, value in reading.cursor()}

    def check() -> int:
        """All that is there is whole, and it can be read only when it is finished."""
        data = folder / 'data.mdb'
        if not data.exists() or data.stat().st_size < 8192:
            return 0
        there = records_there()
        stored = TeacherCache(str(folder))
        names = [key for key in there if key not in (META, FINISHED)]
        with contextlib.suppress(CacheError):
            assert len(list(stored.keys())) == (24 if options else 12) and FINISHED in there
            for image, tap in list(stored.keys()):
                stored.read(image, tap)
        return len(names)

    return Case(folder, run, run, records_there, check, ('lock.mdb', '.lock'))


# An export ----------------------------------------------------------------------------------------


def export(root: Path, data: Path, suffix: str = '.pth') -> Case:
    """The student of a checkpoint."""
    model = models.of_a_segmentor()
    file = written(settings(model, data), root / 'run.py')
    checkpoint = root / 'trained.pth'
    torch.save(dict(meta={}, state_dict=build(models.segmentor(4)).state_dict()), checkpoint)
    folder, main = root / 'exported', load_tool('export_student').main
    out = folder / f'student{suffix}'

    def run() -> None:
        call_tool(main, 'export_student', [file, checkpoint, out])

    def check() -> int:
        if not out.exists():
            return 0
        assert len(read_checkpoint(out)) > 0 and Config.fromfile(out.with_suffix('.py')).model
        return 1

    return Case(folder, run, run, lambda: contents(folder), check, refused=out.exists)


def onnx(root: Path, data: Path) -> Case:
    """The student of a checkpoint, for other programs."""
    file = written(settings(models.of_a_segmentor(), data), root / 'run.py')
    weights = save_weights(models.segmentor(4), root / 'trained.pth')
    folder, main = root / 'exported', load_tool('export_onnx').main
    out, reader = folder / 'student.onnx', pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')

    def run() -> None:
        call_tool(main, 'export_onnx', [file, weights, out, '--size', 64, 64, '--fixed'])

    def check() -> int:
        return len(reader.load(out).graph.node) if out.exists() else 0

    return Case(folder, run, run, lambda: contents(folder), check, refused=out.exists)


# Other files --------------------------------------------------------------------------------------


def from_mmrazor(root: Path, data: Path) -> Case:
    """The student of a checkpoint of MMRazor."""
    state = build(models.segmentor(4)).state_dict()
    checkpoint, folder = root / 'razor.pth', root / 'made'
    torch.save(dict(state_dict={f'architecture.{k}': v for k, v in state.items()}), checkpoint)
    out, main = folder / 'student.pth', load_tool('from_mmrazor').main

    def run() -> None:
        call_tool(main, 'from_mmrazor', [checkpoint, out])

    def check() -> int:
        return len(read_checkpoint(out)) if out.exists() else 0

    return Case(folder, run, run, lambda: contents(folder), check, refused=out.exists)


def mmrazor_config(root: Path, data: Path) -> Case:
    """A config of MMRazor as one of ours."""
    for name, depth in dict(student=18, teacher=34).items():
        (root / f'{name}.py').write_text(SEGMENTOR.format(root=str(data), depth=depth))
    (root / 'razor.py').write_text(test_from_mmrazor.THEIRS)
    folder, main = root / 'made', load_tool('from_mmrazor').main
    out = folder / 'ours.py'

    def run() -> None:
        os.chdir(root)
        call_tool(main, 'from_mmrazor', ['razor.py', out])

    def check() -> int:
        assert not out.exists() or out.read_text().rstrip().endswith(')')
        return int(out.exists())

    return Case(folder, run, run, lambda: contents(folder), check, refused=out.exists)


def with_a_teacher_connector(root: Path, data: Path, teacher: str, connector: str) -> dict:
    """Settings of a run whose one term converts the teacher's maps."""
    model = models.of_a_segmentor()
    term = dict(
        tap='backbone.conv2',
        teacher_connector=models.own(teacher),
        loss=models.own('HintLoss'),
        connector=models.own(connector),
    )
    weights = save_weights(models.segmentor(8), root / 't.pth')
    model.update(
        teacher=dict(config=models.segmentor(8), checkpoint=weights), distill=dict(hint=term)
    )
    return settings(model, data, report=False)


def fit_connector(root: Path, data: Path) -> Case:
    """Directions of a teacher, which are measured."""
    run_settings = with_a_teacher_connector(root, data, 'PHISNormalizer', 'ConvConnector')
    file, folder = written(run_settings, root / 'run.py'), root / 'work'
    out, main = folder / 'fitted.pth', load_tool('fit_connector').main

    def run() -> None:
        call_tool(main, 'fit_connector', [file, '--work-dir', folder])

    def check() -> int:
        return len(read_checkpoint(out)) if out.exists() else 0

    return Case(folder, run, run, lambda: contents(folder), check, refused=out.exists)


def paraphraser(root: Path, data: Path) -> Case:
    """A paraphraser, which is trained before the student."""
    run_settings = with_a_teacher_connector(root, data, 'Paraphraser', 'Translator')
    file, folder = written(run_settings, root / 'run.py'), root / 'work'
    out, main = folder / 'paraphraser.pth', load_tool('train').main

    def run() -> None:
        call_tool(main, 'train', [file, '--work-dir', folder, '--paraphraser', '--resume'])

    def check() -> int:
        return 9 if out.exists() and read_checkpoint(out) else newest(folder / 'paraphraser')

    def outcome() -> dict[str, Any]:
        return dict(read_checkpoint(out)['state_dict'])

    return Case(folder, run, run, outcome, check, NOT_READ, refused=out.exists)


def distill(root: Path, data: Path) -> Case:
    """The config that is chosen for two models, and the run with it."""
    weights = save_weights(models.segmentor(8), root / 't.pth')
    student, teacher = (
        written(settings(models.segmentor(width), data, report=False), root / f'{name}.py')
        for name, width in dict(student=4, teacher=8).items()
    )
    folder, main = root / 'work', load_tool('distill').main
    config = folder / 'student_distilled.py'

    def run() -> None:
        call_tool(main, 'distill', [student, teacher, weights, '--work-dir', folder, '--resume'])

    def outcome() -> dict[str, Any]:
        return dict(trained(folder), config=config.read_text())

    def check() -> int:
        return newest(folder) + bool(config.exists() and Config.fromfile(config).model.distill)

    return Case(folder, run, run, outcome, check, NOT_READ)


def visualize(root: Path, data: Path) -> Case:
    """The page with pictures of a student."""
    model = models.of_a_segmentor()
    run_settings = validated(Config(settings(model, data)), data).to_dict()
    file = written(run_settings, root / 'run.py')
    weights = save_weights(models.segmentor(4), root / 's.pth')
    folder, main = root / 'pages', load_tool('visualize').main
    out = folder / 'page'
    typed = [file, weights, '--out', out, '--count', 1, '--panels', 'predictions']

    def run() -> None:
        call_tool(main, 'visualize', [*typed, '--device', 'cpu'])

    def files() -> dict[str, bytes]:
        return {name: kept for name, kept in contents(out).items() if name != '.visualize'}

    def check() -> int:
        assert not out.exists() or len(files()) == 3  # the page and a picture in two sizes
        return int(out.exists())

    return Case(folder, run, run, files, check, refused=out.exists)


def report(root: Path, data: Path) -> Case:
    """The page about a run."""
    file = written(segmentation(data, root / 't.pth'), root / 'run.py')
    train_tool, tool = load_tool('train').main, load_tool('report').main
    work, folder = root / 'work', root / 'pages'
    ending = fork(lambda: call_tool(train_tool, 'train', [file, '--work-dir', work]), root / 'logs')
    assert ending.status == 0, ending.log

    def run() -> None:
        call_tool(tool, 'report', [work, '--out', folder / 'page.html'])

    def check() -> int:
        page = folder / 'page.html'
        assert not page.exists() or page.read_text().rstrip().endswith('</html>')
        return int(page.exists())

    return Case(folder, run, run, lambda: contents(folder), check)


def predictions(root: Path, data: Path) -> Case:
    """What a student predicts for each image."""
    file = root / 'student.py'
    file.write_text(SEGMENTOR.format(root=str(data), depth=18))
    save_random_weights(file, root / 's.pth')
    folder, main = root / 'kept', load_tool('test').main
    out = folder / 'all.pkl'
    typed = [file, root / 's.pth', '--out', out, '--work-dir', root / 'work']

    def run() -> None:
        call_tool(main, 'test', typed)

    def check() -> int:
        return len(load(out)) if out.exists() else 0

    return Case(folder, run, run, lambda: load(out), check)


# Converters ---------------------------------------------------------------------------------------


def converter(
    root: Path, arguments: Callable[[Path], list], name: str, count: int, refuses: bool = True
) -> Case:
    """A tool that makes a data set of ``count`` files."""
    folder, main = root / 'made', load_tool(name).main
    out, typed = folder / 'data', [*arguments(root), '--out', folder / 'data']

    def run() -> None:
        call_tool(lambda: sys.exit(main()), Path(name).name, typed)

    def files() -> dict[str, bytes]:
        return {k: v for k, v in contents(out).items() if not Path(k).name.startswith('.')}

    def check() -> int:
        found = len(files()) if out.exists() else 0
        assert found in (0, count)
        return found

    def whole() -> bool:
        return refuses and bool(out.exists() and files())

    return Case(folder, run, run, files, check, refused=whole)


def bccd(root: Path, data: Path) -> Case:
    return converter(
        root,
        lambda root: [test_bccd.write_source(root), '--size', '32x24'],
        'dataset_converters/bccd',
        7,
    )


def camvid(root: Path, data: Path) -> Case:
    return converter(
        root,
        lambda root: [test_camvid.write_source(root), '--size', '24x18'],
        'dataset_converters/camvid',
        12,
    )


def digit_scenes(root: Path, data: Path) -> Case:
    small = ['--train', 1, '--val', 1, '--size', 64]
    return converter(root, lambda _: small, 'make_digit_scenes', 7, refuses=False)


# Tables and demo ----------------------------------------------------------------------------------


def reproduce(root: Path, data: Path) -> Case:
    """A run of a table: trained, scored, and its line among the finished runs."""
    student = root / 'student_tiny.py'
    student.write_text(SEGMENTOR.format(root=str(data), depth=18) + HELD_OUT)
    table = Table(Data('tiny', 'Tiny', '*_tiny.py', seeds=1), 'segmentation', student, None, {})
    one, folder = Run(table, 'student'), root / 'work'

    def run() -> None:
        place, file = Place(folder, {}, Forked()), folder / 'runs.jsonl'
        if find(one, records.read(file)) is None:
            records.append(file, perform(one, [], place, lambda *_: None))

    def outcome() -> dict[str, Any]:
        (line,) = records.read(folder / 'runs.jsonl')
        assert not list(folder.rglob('*.pth'))
        return dict(score=line.score, val_score=line.val_score, iterations=line.iterations)

    return Case(folder, run, run, outcome, lambda: len(records.read(folder / 'runs.jsonl')), OUTPUT)


def whole_reproduce(root: Path, data: Path) -> Case:
    """A whole table: a teacher, a student, trials of a weight on it, runs, and the page."""
    folder, main = root / 'work', load_tool('reproduce').main
    table = test_reproduce.tiny_table(root, data)
    lines = folder / 'runs.jsonl'
    typed = ['--results', lines, '--work-dir', folder / 'runs', '--jobs', 1, '--no-longer']

    def run() -> None:
        os.chdir(root)
        gains_training.Processes.start = Forked.start
        tables.CONFIGS, tables.DATA = table
        folder.mkdir(exist_ok=True)
        call_tool(main, 'reproduce', [*typed, '--weights', 'recipe', 50])

    def outcome() -> dict[str, Any]:
        found = [(one.method, one.weight, one.score, one.val_score) for one in records.read(lines)]
        assert len(found) == len({one[:2] for one in found}) and (folder / 'results.md').is_file()
        return dict(sorted=sorted(found, key=str))

    def check() -> int:
        return len(records.read(lines)) if lines.exists() else 0

    return Case(folder, run, run, outcome, check, (*OUTPUT, '.json', '.py'))


def whole_demo(root: Path, data: Path) -> Case:
    """All of the demo: data, three trainings, scores, and the picture."""
    tool, folder = load_tool('demo'), root / 'work'
    (root / 'student.py').write_text(test_demo.STUDENT.format(root=test_demo.ROOT))
    (root / 'distilled.py').write_text(test_demo.DISTILLED.format(folder=root))
    student, distilled = str(root / 'student.py'), str(root / 'distilled.py')
    task = tool.Task(student, student, distilled, 'mIoU', 'mIoU', 1, batch_size=2)
    few = ['--train', '12', '--val', '4']

    def run() -> None:
        os.chdir(root)
        gains_training.Processes.start = Forked.start
        tool.make_digit_scenes = lambda: load_tool('make_digit_scenes').main(few)
        tool.run_demo('segmentation', task, folder, 0, Console(quiet=True))

    def picture() -> int:
        file = folder / 'report.png'
        if file.exists():
            with Image.open(file) as found:
                found.load()
        return int(file.exists())

    def check() -> int:
        return len([*folder.glob('*/done.json')]) + picture()

    def outcome() -> dict[str, Any]:
        assert picture() == 1
        lasts = {one.name: one / 'done.json' for one in folder.iterdir() if one.is_dir()}
        lasts = {name: json.loads(file.read_text()) for name, file in sorted(lasts.items())}
        return {
            name: dict(read_checkpoint(one['checkpoint'])['state_dict'])
            for name, one in lasts.items()
        }

    return Case(folder, run, run, outcome, check, (*OUTPUT, '.json', '.py'))


def demo(root: Path, data: Path) -> Case:
    """A run of the demo, and its score."""
    tool, folder, student = load_tool('demo'), root / 'work', root / 'student.py'
    student.write_text(SEGMENTOR.format(root=str(data), depth=18) + HELD_OUT)
    task = tool.TASKS['segmentation']
    note = folder / 'score'

    def run() -> None:
        gains_training.Processes = Forked
        wanted = dict(seed=0, length=1.0, batch_size=2)
        tool.train(student, folder, wanted, 'student', Console(quiet=True))
        note.write_text(str(tool.score(folder, task)))

    def outcome() -> dict[str, Any]:
        last = gains_training.last_checkpoint(folder)
        return dict(score=note.read_text(), weights=dict(read_checkpoint(last)['state_dict']))

    return Case(folder, run, run, outcome, lambda: int((folder / 'done.json').exists()), OUTPUT)
