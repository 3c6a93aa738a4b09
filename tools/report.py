"""Write a page about a run: scores, curves, terms, cost, advice. Several runs are compared."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

from mmkd_plugin.cli import UsageError, check_file, check_number, plain_errors, stages
from mmkd_plugin.report import FILE, read_run, write_report
from mmkd_plugin.stack import safe_loading


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'work_dirs',
        nargs='+',
        type=Path,
        metavar='WORK_DIR',
        help='what a training wrote; name those of the student alone and of the teacher too',
    )
    parser.add_argument(
        '--out', type=Path, metavar='FILE', help=f'the page (WORK_DIR/{FILE} of the first)'
    )
    parser.add_argument('--alone', type=float, metavar='SCORE', help='score of the student alone')
    parser.add_argument('--teacher', type=float, metavar='SCORE', help='score of the teacher')
    return parser.parse_args()


def main() -> None:
    with safe_loading(), plain_errors():
        args = parse_args()
        out = args.out or args.work_dirs[0] / FILE
        if out.suffix != '.html':
            raise UsageError(f'--out {out}: expected a file that ends with .html')
        check_number(args.alone, '--alone', 0)
        check_number(args.teacher, '--teacher', 0)
        folders, runs = dict.fromkeys(args.work_dirs), []
        with stages(len(folders) + 1) as begin:
            for folder in folders:
                begin(f'reading {folder.name}')
                runs.append(read_run(folder))
            check_file(out, '--out')
            begin('drawing the page')
            write_report(runs, out, args.alone, args.teacher)
        print(out)


if __name__ == '__main__':
    main()
