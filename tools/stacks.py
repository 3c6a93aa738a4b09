"""Run tests in environments with other versions, and keep a table of what passed."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'versions.md'
START, END = '<!-- tools/stacks.py -->', '<!-- end -->'
HEAD = ['stack', 'Python', 'torch', 'libraries', 'tests', 'passed', 'skipped', 'failed', 'last run']

#: Runs in the environment, and prints what it has as JSON.
PROBE = """
import importlib.metadata as about, json, platform, torch
names = {}
for name in ('mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'mmpretrain', 'onedl-mmengine',
             'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmsegmentation', 'numpy'):
    try:
        names[name] = about.version(name)
    except about.PackageNotFoundError:
        pass
print(json.dumps(dict(python=platform.python_version(), torch=torch.__version__, names=names)))
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('environments', nargs='*', type=Path, help='folders of environments')
    parser.add_argument(
        '--tests',
        nargs='+',
        default=['tests/losses', 'tests/terms', 'tests/connectors', 'tests/test_distiller.py'],
        help='what to run (default: losses, terms, connectors, the Distiller)',
    )
    parser.add_argument('--page', type=Path, default=PAGE, help='the page with the table')
    return parser.parse_args()


def versions(python: Path) -> dict:
    """What an environment has."""
    done = subprocess.run(
        [str(python), '-c', PROBE], capture_output=True, text=True, check=True, cwd='/'
    )
    return json.loads(done.stdout.splitlines()[-1])


def outcome(python: Path, tests: list[str]) -> dict[str, int]:
    """Runs tests in an environment; how many passed, were skipped and failed."""
    command = [str(python), '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *tests]
    variables = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables)
    counted = counts(done.stdout)
    if done.returncode not in (0, 1) or not counted:
        raise SystemExit(f'{python}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}')
    for line in done.stdout.splitlines():
        if line.startswith(('FAILED', 'ERROR')):
            print(line)
    return counted


def counts(output: str) -> dict[str, int]:
    """The numbers in the last line of pytest.

    Examples:
        >>> counts('3 failed, 20 passed, 1 skipped in 2.1s')
        {'failed': 3, 'passed': 20, 'skipped': 1}
    """
    last = output.strip().splitlines()[-1] if output.strip() else ''
    return {kind: int(n) for n, kind in re.findall(r'(\d+) (passed|failed|skipped|error)', last)}


def row(found: dict, tests: list[str], counted: dict[str, int]) -> list[str]:
    """A row of the table."""
    names = dict(found['names'])
    stack = 'onedl' if any(name.startswith('onedl') for name in names) else 'upstream'
    libraries = ', '.join(f'{name.removeprefix("onedl-")} {v}' for name, v in names.items())
    what = ', '.join(test.removeprefix('tests/') for test in tests)
    failed = counted.get('failed', 0) + counted.get('error', 0)
    numbers = [counted.get('passed', 0), counted.get('skipped', 0), failed]
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return [stack, found['python'], found['torch'], libraries, what, *map(str, numbers), today]


def merged(text: str, new: list[list[str]]) -> str:
    """The page with some rows added, or put in the place of rows of the same versions and tests."""
    before, rest = text.split(START, 1)
    block, after = rest.split(END, 1)
    lines = [line for line in block.splitlines() if line.startswith('|')][2:]
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    rows = {tuple(one[:5]): one for one in [*rows, *new]}
    table = [HEAD, ['---'] * 5 + ['--:'] * 3 + ['---'], *(rows[key] for key in sorted(rows))]
    lines = [f'| {" | ".join(one)} |' for one in table]
    return '\n'.join([before + START, '', *lines, '', END + after])


def main() -> None:
    args = parse_args()
    for folder in args.environments or [Path(sys.prefix)]:
        python = folder / 'bin' / 'python'
        if not python.exists():
            raise SystemExit(f'stacks.py: error: {folder} is not an environment: no bin/python')
        found = versions(python)
        new = row(found, args.tests, outcome(python, args.tests))
        print(*new, sep=' | ', flush=True)
        args.page.write_text(merged(args.page.read_text(encoding='utf-8'), [new]), encoding='utf-8')


if __name__ == '__main__':
    main()
