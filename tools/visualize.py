"""Draw what a student was taught: teacher, student and a baseline side by side, on one HTML page.

Panels: `predictions` with their errors, `attention` maps of each stage, the most active `channels`
of the tapped layers, `explanations` of the classes that the teacher sees. DIR/index.html shows them
all; DIR/images holds the pictures.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.registry import DATASETS, MODELS
from rich.console import Console
from torch import nn

from mmkd_plugin.annotations import fits
from mmkd_plugin.checkpoint import load_weights, meta_of, nearest_names, read_checkpoint
from mmkd_plugin.cli import (
    UsageError,
    add_cfg_options,
    apply_options,
    check_folder,
    check_number,
    is_distilled,
    plain_errors,
    progress_bar,
    read_config,
    use_scope,
    use_student,
)
from mmkd_plugin.saving import whole_folder
from mmkd_plugin.stack import safe_loading
from mmkd_plugin.taps import Taps
from mmkd_plugin.teachers.configs import teacher_configs
from mmkd_plugin.teachers.model import without_pretraining
from mmkd_plugin.teachers.online import OnlineTeacher
from mmkd_plugin.terms.term import Term
from mmkd_plugin.training_data import CheckedPipeline, Expected
from mmkd_plugin.visualization import (
    PANELS,
    Gallery,
    Meta,
    Page,
    Place,
    Scene,
    Viewer,
    evenly,
    places_of,
)
from mmkd_plugin.visualization.gallery import check_panels
from mmkd_plugin.words import first_line, type_name

#: Lies in <out>.partial and says that this tool made it.
MARKER = '.visualize'

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp', '.ppm')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='a distilled config; its teacher is drawn too')
    parser.add_argument('student', help='a checkpoint of the student')
    parser.add_argument('--against', metavar='OTHER', help='a checkpoint of a baseline')
    parser.add_argument(
        '--teacher',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='draw this teacher instead of those of the config',
    )
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='a new folder')
    which = parser.add_mutually_exclusive_group()
    which.add_argument('--images', nargs='+', type=Path, metavar='FILE_OR_DIR', help='what to draw')
    which.add_argument(
        '--count',
        type=int,
        default=8,
        metavar='N',
        help='draw N images, spread evenly over the validation set, with ground truth (8)',
    )
    parser.add_argument(
        '--panels', nargs='+', metavar='PANEL', help=f'some of {", ".join(PANELS)} (all)'
    )
    parser.add_argument(
        '--taps',
        nargs='+',
        metavar='TAP',
        help='where maps are read, such as neck or backbone[3], or STUDENT=TEACHER if the names '
        'differ; default: the taps of the config, the backbone and the neck',
    )
    parser.add_argument(
        '--channels', type=int, default=5, metavar='K', help='channels of each layer (5)'
    )
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='lowest score of the boxes drawn (0.3)'
    )
    parser.add_argument('--device', default=get_device(), help='cpu, cuda, ... (what there is)')
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    with safe_loading(), plain_errors():
        args = parse_args()
        check(args)
        cfg = read_config(args.config)
        apply_options(cfg, args.cfg_options)
        use_scope(cfg)
        console = Console()
        with torch.device('cpu'):
            teachers = teachers_of(cfg, args, console)
            models = {**teachers, 'student': student_of(cfg, args.student, 'student')}
            if args.against:
                models['baseline'] = student_of(cfg, args.against, 'baseline')
        for model in models.values():
            model.to(args.device)
            model.eval()
        preprocessor = models['student'].data_preprocessor
        dataset = dataset_of(cfg, lazy=args.images is not None)
        items, count = items_of(cfg, dataset, args)
        gallery = Gallery(
            [
                Viewer(n, m, preprocessor, 'teacher' if n in teachers else 'student')
                for n, m in models.items()
            ],
            args.panels,
            Meta.of(metainfo_of(dataset, args.student), models['student']),
            chosen_places(args.taps, models) if args.taps else config_places(cfg, models),
            next(iter(teachers), None),
            chosen=args.taps is not None,
            score_thr=args.score_thr,
            channels=args.channels,
        )
        with whole_folder(args.out, MARKER) as folder, progress_bar(console) as progress:
            page = Page(folder)
            for data in progress.track(items, total=count, description='images'):
                scene = Scene.of(data, preprocessor)
                page.add(scene.name, *gallery.pictures(scene))
            file = page.write(Path(args.config).stem, facts(args, gallery, teachers))
    console.print(f'{count} images: {args.out / file.name}', soft_wrap=True)


def check(args: argparse.Namespace) -> None:
    """Refuse wrong arguments before anything is loaded."""
    check_number(args.count, '--count', 1)
    check_number(args.channels, '--channels', 1)
    check_number(args.score_thr, '--score-thr', 0, 1)
    if args.panels is not None:
        check_panels(args.panels)
    try:
        torch.empty(1, device=args.device).item()
    except (AssertionError, RuntimeError) as error:
        reason = first_line(error)
        raise UsageError(f'--device {args.device} cannot be used: {reason}') from error
    if args.images is not None:
        files_of(args.images)
    if args.out.is_dir() and any(args.out.iterdir()):
        (args.out / MARKER).unlink(missing_ok=True)  # of a run that was killed when all was there
        raise UsageError(f'{args.out} exists already; nothing is overwritten, give a new --out')
    check_folder(args.out, '--out')
    for checkpoint in filter(None, (args.student, args.against)):
        read_checkpoint(checkpoint)


def teachers_of(cfg: Config, args: argparse.Namespace, console: Console) -> dict[str, nn.Module]:
    """Build the teachers that have a model of their own, by name."""
    if args.teacher is not None:
        config, checkpoint = args.teacher
        return {'teacher': OnlineTeacher(config, checkpoint).model}
    if not is_distilled(cfg):
        raise UsageError(
            f'{args.config} has no teacher: give a distilled config, or --teacher CONFIG CHECKPOINT'
        )
    found = {}
    for name, config in teacher_configs(cfg.model.teacher).items():
        if 'type' in config:
            kind = type_name(config['type'])
            console.print(
                f"Teacher '{name}' is a {kind} and has no model that could be drawn; --teacher "
                'CONFIG CHECKPOINT gives one.'
            )
        else:
            found[name] = OnlineTeacher(**config).model
    return found


def student_of(cfg: Config, checkpoint: str, name: str) -> nn.Module:
    """Build the student of a config with the weights of a checkpoint."""
    cfg = copy.deepcopy(cfg)
    use_student(cfg)
    model = MODELS.build(without_pretraining(cfg.model))
    try:
        load_weights(model, checkpoint, name=name, lenient=None)
    except ValueError as error:
        raise UsageError(str(error).partition('\nIf that is intended')[0]) from error
    return model


def dataset_of(cfg: Config, lazy: bool) -> Any:
    """Build the validation set, or None; ``lazy``: only what it knows without its files."""
    loader = cfg.get('val_dataloader') or cfg.get('test_dataloader')
    if loader is None:
        if lazy:
            return None
        raise UsageError('the config has no `val_dataloader`; say with --images what to draw')
    try:
        return DATASETS.build({**loader.dataset, **(dict(lazy_init=True) if lazy else {})})
    except FileNotFoundError as error:
        raise UsageError(f'the validation set is not there: {error}') from error


def metainfo_of(dataset: Any, checkpoint: str) -> dict | None:
    """Return classes and palette: those of the data set, else those in the checkpoint."""
    metainfo = getattr(dataset, 'metainfo', None)
    if metainfo and metainfo.get('classes'):
        return metainfo
    found = meta_of(read_checkpoint(checkpoint)).get('dataset_meta')
    whole = isinstance(found, dict) and fits(found.get('classes'), list | None)
    return found if whole and fits(found.get('palette'), list | str | None) else None


def items_of(cfg: Config, dataset: Any, args: argparse.Namespace) -> tuple[Iterator[dict], int]:
    """Return the images to draw, as the pipeline packs them, and their number."""
    if args.images is None:
        if not len(dataset):
            raise UsageError('the validation set has no images; is its path right?')
        chosen = evenly(args.count, len(dataset))
        return (dataset[n] for n in chosen), len(chosen)
    files = files_of(args.images)
    steps = [
        step
        for step in pipeline_of(cfg)
        if not type_name(step['type']).startswith('LoadAnnotations')
    ]
    pipeline = CheckedPipeline(Compose(steps).transforms, Expected())
    return (pipeline(dict(img_path=str(f), img_id=n)) for n, f in enumerate(files)), len(files)


def pipeline_of(cfg: Config) -> list:
    """Return the test pipeline of a config."""
    if cfg.get('test_pipeline'):
        return cfg.test_pipeline
    loader = cfg.get('val_dataloader') or cfg.get('test_dataloader')
    dataset = loader.dataset if loader else {}
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset.dataset
    if 'pipeline' not in dataset:
        raise UsageError('the config has no `test_pipeline` and no `val_dataloader` to read images')
    return dataset.pipeline


def files_of(paths: Sequence[Path]) -> list[Path]:
    """Return the images at paths: files, and those directly in folders."""
    files = []
    for path in paths:
        if path.is_dir():
            inside = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
            if not inside:
                raise UsageError(f'no image in {path} (looked for {", ".join(SUFFIXES)})')
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise UsageError(f'no image at {path}{nearest_names(path, SUFFIXES)}')
    return files


def config_places(cfg: Config, models: dict[str, nn.Module]) -> list[Place]:
    """Return the places where the terms of the config compare maps."""
    if not is_distilled(cfg):
        return []
    names = list(teacher_configs(cfg.model.teacher))
    terms = [Term.from_config(name, term, names) for name, term in cfg.model.distill.items()]
    places = places_of(terms, [name for name in models if name == 'baseline'])
    if models.keys() >= {'teacher'} and 'teacher' not in names:  # --teacher
        first = names[0]
        places = [
            replace(p, taps={'teacher' if n == first else n: t for n, t in p.taps.items()})
            for p in places
            if first in p.taps
        ]
    return [replace(p, taps={n: t for n, t in p.taps.items() if n in models}) for p in places]


def chosen_places(taps: Sequence[str], models: dict[str, nn.Module]) -> list[Place]:
    """Return the places that --taps names."""
    places = []
    for text in taps:
        student, _, teacher = text.partition('=')
        ours, theirs = Taps.parse(student), Taps.parse(teacher or student)
        places.append(Place({n: ours if n in ('student', 'baseline') else theirs for n in models}))
    return places


def facts(
    args: argparse.Namespace, gallery: Gallery, teachers: dict[str, nn.Module]
) -> dict[str, str]:
    """Collect what a reader of the page must know."""
    found = {'config': args.config}
    for name, model in teachers.items():
        found[name] = type(model).__name__ + (f', {args.teacher[1]}' if args.teacher else '')
    found['student'] = args.student
    if args.against:
        found['baseline'] = args.against
    if gallery.places:
        found['taps'] = ', '.join(map(str, gallery.places))
    return found


if __name__ == '__main__':
    main()
