"""Distil a student from a teacher: taps, loss and weight are chosen, shown, and trained with.

STUDENT and TEACHER are configs of mmsegmentation or mmdetection, CHECKPOINT has the teacher's
weights. The choice is written into the work dir as a config that `tools/train.py` takes, too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope
from rich.console import Console

from mmkd_plugin.__main__ import as_typed
from mmkd_plugin.checkpoint import read_checkpoint
from mmkd_plugin.choosing import check_method, choose, config_text, look_at_student, look_at_teacher
from mmkd_plugin.cli import (
    UsageError,
    apply_options,
    check_folder,
    check_launched,
    check_scope,
    is_distilled,
    is_first_process,
    load_config,
    plain_errors,
    read_config,
    stages,
)
from mmkd_plugin.cores import Cores
from mmkd_plugin.foreign import errors_named
from mmkd_plugin.ingredients import build_student
from mmkd_plugin.saving import write_text
from mmkd_plugin.stack import safe_loading
from mmkd_plugin.teachers.classes import (
    classes_of_checkpoint,
    classes_of_config,
    classes_of_the_student,
    reduces_zero_label,
)
from mmkd_plugin.teachers.model import build_model, data_in_config
from mmkd_plugin.training import add_training_arguments, train


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=as_typed(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('student', help='a config: a path, mmseg::..., mmdet::... or mmkd::...')
    parser.add_argument('teacher', help='a config, in the same forms')
    parser.add_argument('checkpoint', help="file or URL of the teacher's weights")
    parser.add_argument(
        '--method', metavar='NAME', help='another method than the first that fits, such as pkd'
    )
    parser.add_argument(
        '--dry-run', action='store_true', help='show the plan and the config, and write nothing'
    )
    add_training_arguments(parser)
    return parser.parse_args()


def main() -> None:
    start = Cores.now()
    with safe_loading(), plain_errors(), ExitStack() as stack:
        args = parse_args()
        check_launched(args.launcher)
        check_method(args.method)
        student = read_student(args.student)
        file = config_file(student, args)
        args.work_dir = str(file.parent)
        if args.resume and file.exists():
            check_same(file, args)
        else:
            text = chosen(student, args)
            if args.dry_run or not is_first_process(args.launcher):  # the first one writes it
                file = Path(stack.enter_context(tempfile.TemporaryDirectory()), file.name)
                file.write_text(text, encoding='utf-8')
            else:
                write(file, text)
        args.config = str(file)
        cfg = load_config(args)
        if args.dry_run:
            show(cfg, file)
        else:
            train(cfg, args, start)


def read_student(name: str) -> Config:
    """Reads the student's config."""
    cfg = read_config(name)
    if is_distilled(cfg):
        raise UsageError(
            f'{name} is distilled already: python tools/train.py {name}; or give the config of its '
            'student'
        )
    if Config._is_lazy_import(cfg.filename):
        raise UsageError(
            f'{name} is a pure-Python config, and what is written here cannot build on one. In a '
            'config of your own, write `with read_base():` and `from .student import *`, then '
            'model = dict(type=Distiller, student=model, teacher=..., distill=...) with the '
            '`distill` that a config of the same model as text gets here; train it with '
            'tools/train.py'
        )
    return cfg


def config_file(student: Config, args: argparse.Namespace) -> Path:
    """Returns where the config is written: in the work dir, named as the student's."""
    name = f'{Path(student.filename).stem}_distilled'
    options = args.cfg_options or {}
    folder = args.work_dir or options.get('work_dir') or student.get('work_dir')
    folder = str(folder or Path('work_dirs', name))
    check_folder(folder, '--work-dir')
    return Path(folder, f'{name}.py')


def chosen(student: Config, args: argparse.Namespace) -> str:
    """Looks at both models, chooses what to compare, and returns the config that says so."""
    for config in (student, read_config(args.teacher)):  # the mistakes in them come first
        check_scope(config)
    # Each process of a distributed run looks for itself, before it has its own accelerator.
    device = torch.device(get_device() if args.launcher == 'none' else 'cpu')
    with stages(3, shown_by_one(args.launcher)) as begin:
        begin("reading the teacher's weights")
        names = classes_of_checkpoint(read_checkpoint(args.checkpoint))
        begin('looking at the student')
        apply_options(student, of_student(args.cfg_options))
        with DefaultScope.overwrite_default_scope(student.get('default_scope', 'mmengine')):
            model = build_student(student.model, student.get('data_preprocessor'))
            ours = look_at_student(model, classes_of_config(student), device)
        begin('looking at the teacher')
        with errors_named("teacher 'teacher'"):
            teacher = build_model(args.teacher, 'teacher')
        names, _ = data_in_config(args.teacher, 'teacher', names)
        theirs = look_at_teacher(teacher, names, device, model.data_preprocessor)
    choice = choose(ours, theirs, args.method)
    if is_first_process(args.launcher):
        print_log(choice.said, logger='current')
    return config_text(
        found_from(args.student),
        found_from(args.teacher),
        found_from(args.checkpoint, '://'),
        choice,
    )


def shown_by_one(launcher: str) -> Console:
    """Where a bar is drawn: nowhere, but by the first process."""
    return Console(stderr=True, force_terminal=None if is_first_process(launcher) else False)


def of_student(options: dict[str, Any] | None) -> dict[str, Any]:
    """The settings of the student, as its own config calls them."""
    own, model = 'model.student.', 'model.'
    return {
        f'{model}{key.removeprefix(own)}' if key.startswith(own) else key: value
        for key, value in (options or {}).items()
        if key.startswith(own) or not key.startswith(model)
    }


def found_from(name: str, elsewhere: str = '::') -> str:
    """A path that is right from any folder; an address stays."""
    return name if elsewhere in name else str(Path(name).absolute())


def write(file: Path, text: str) -> None:
    """Writes the config, unless another one is there."""
    if not file.exists():
        write_text(file, text)
    elif file.read_text(encoding='utf-8') != text:
        raise UsageError(
            f'{file} exists and is not what would be written now. Train with it (python '
            f'tools/train.py {file} --work-dir {file.parent}), move it away, or take another '
            '--work-dir'
        )
    print_log(f'The config is {file}.', logger='current')


def check_same(file: Path, args: argparse.Namespace) -> None:
    """Refuses to go on with a config that was written for something else."""
    model = read_config(str(file)).model
    teacher = model.get('teacher')
    given = dict(config=found_from(args.teacher), checkpoint=found_from(args.checkpoint, '://'))
    for key, value in given.items() if isinstance(teacher, dict) else ():
        if teacher.get(key) != value:
            raise UsageError(
                f'--resume: {file} has the {key} {teacher.get(key)} of the teacher, not {value}. '
                'Go on with the same one, or take another --work-dir'
            )
    if args.method is not None and args.method not in (model.get('distill') or {}):
        raise UsageError(
            f'--resume: {file} has no term {args.method}; leave out --method, or take another '
            '--work-dir'
        )
    print_log(
        f'--resume: the config is {file}, as it is there. What --cfg-options set in the run before '
        'is not in it: give it again.',
        logger='current',
    )


def show(cfg: Config, file: Path) -> None:
    """Prints the plan, which a Distiller prints when it is built, and the config."""
    names = classes_of_config(cfg)
    model = dict(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with (
        DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')),
        classes_of_the_student(names, reduces_zero_label(cfg)),
    ):
        MODELS.build(model)
    print(file.read_text(encoding='utf-8'))


if __name__ == '__main__':
    main()
