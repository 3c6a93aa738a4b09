"""Write a distillation config of MMRazor 1.x or others as one of ours, or take apart a checkpoint.

A config becomes a short one on the student's own config. Comments say where the meaning differs.
It may be one of MMRazor, MMYOLO, mmdetection-distiller, FGD or MGD (.py), or a command of CIRKD
in a shell script (.sh). Of a checkpoint of MMRazor, OUT gets the student as plain weights, or the
teacher with `--part teacher`.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

import torch

from mmkd_plugin.checkpoint import meta_of, read_checkpoint, state_dict_of
from mmkd_plugin.cli import UsageError, check_file, plain_errors, stages
from mmkd_plugin.migrating import SUFFIXES, config_text, read_file
from mmkd_plugin.saving import replacing, write_text
from mmkd_plugin.stack import safe_loading

#: The beginning of the keys of each model in a checkpoint.
PREFIXES = dict(student='architecture.', teacher='teacher.')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', help='a config (.py), a command (.sh) or a checkpoint (.pth)')
    parser.add_argument(
        'out', nargs='?', type=Path, help='a new file; a config is printed without it'
    )
    parser.add_argument(
        '--checkpoint', action='store_true', help='the source is a checkpoint, whatever its name'
    )
    parser.add_argument(
        '--part', choices=[*PREFIXES], default='student', help='which model of a checkpoint'
    )
    for side in ('student', 'teacher'):
        parser.add_argument(
            f'--{side}', metavar='CONFIG', help=f'config of the {side}, in place of the named one'
        )
    return parser.parse_args()


def main() -> None:
    with safe_loading(), plain_errors():
        args = parse_args()
        if args.out is not None:
            check_file(args.out, 'out')
            if args.out.exists():
                raise UsageError(f'{args.out} exists already; nothing is overwritten')
        if Path(args.source).suffix in SUFFIXES and not args.checkpoint:
            folder = Path() if args.out is None else args.out.parent
            text = converted(args.source, args.student, args.teacher, folder)
            if args.out is None:
                print(text, end='')
            else:
                write_text(args.out, text)
        else:
            if args.out is None:
                raise UsageError('say where the weights go: from_mmrazor.py CHECKPOINT OUT.pth')
            with stages(2) as begin:
                take_out(args.source, args.out, args.part, begin)
        if args.out is not None:
            print(args.out)


def converted(
    source: str, student: str | None = None, teacher: str | None = None, folder: Path = Path()
) -> str:
    """The text of our config, which will be in a folder."""
    found, run = read_file(Path(source), student, teacher)
    bases = bases_of(Path(source)) if source.endswith('.py') else []
    return config_text(run, found, Path(source).name, bases, folder)


def bases_of(file: Path) -> list[str]:
    """What a config file builds on, as far as it is written down as text."""
    for node in ast.parse(file.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '_base_':
            try:
                found = ast.literal_eval(node.value)
            except ValueError:
                return []
            return [found] if isinstance(found, str) else list(found)
    return []


def take_out(source: str, out: Path, part: str, begin: Callable[[str], None]) -> None:
    """Writes the weights of one model of a checkpoint."""
    begin('reading the checkpoint')
    checkpoint = read_checkpoint(source)
    prefix = PREFIXES[part]
    weights = {
        key.removeprefix(prefix): value
        for key, value in state_dict_of(checkpoint, source).items()
        if key.startswith(prefix)
    }
    if not weights:
        raise UsageError(
            f'{source} has no {part}: none of its keys begins with {prefix!r}, as those of '
            'MMRazor do'
        )
    meta = meta_of(checkpoint)
    kept = {key: meta[key] for key in ('dataset_meta',) if key in meta}  # names of the classes
    begin('writing the weights')
    with replacing(out) as (beside,):
        torch.save(dict(meta=kept, state_dict=weights), beside)


if __name__ == '__main__':
    main()
