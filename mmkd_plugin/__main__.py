"""The command ``mmkd``: the programs of ``tools/`` by short names, run as they are.

``python -m mmkd_plugin`` is the same command, for ``torchrun -m mmkd_plugin train ...``.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
import textwrap
from pathlib import Path
from types import ModuleType

from mmkd_plugin.version import __version__

_PACKAGE = Path(__file__).resolve().parent

COMMANDS = {
    'demo': 'demo.py',
    'distill': 'distill.py',
    'train': 'train.py',
    'test': 'test.py',
    'export': 'export_student.py',
    'export-onnx': 'export_onnx.py',
    'report': 'report.py',
    'flops': 'analysis_tools/get_flops.py',
    'visualize': 'visualize.py',
    'cache': 'cache_teacher.py',
    'fit-connector': 'fit_connector.py',
    'from-mmrazor': 'from_mmrazor.py',
    'make-digit-scenes': 'make_digit_scenes.py',
    'convert-camvid': 'dataset_converters/camvid.py',
    'convert-bccd': 'dataset_converters/bccd.py',
}
"""The file below ``tools/`` of each command, in the order of ``mmkd --help``."""


def main() -> None:
    """Runs the command that the arguments of this process name.

    Raises:
        SystemExit: If there is no such command, and as the command itself ends.
    """
    name, *arguments = sys.argv[1:] or ['--help']
    if name in ('-h', '--help'):
        print(help_text(shutil.get_terminal_size().columns))
    elif name == '--version':
        print(f'mmkd {__version__}')
    elif name in COMMANDS:
        from mmkd_plugin.libraries import not_installed  # only now: `mmkd --help` needs none of it

        problem = not_installed('mmengine') or not_installed('mmcv')
        if problem:
            raise SystemExit(f'mmkd: error: {problem}')
        run(tool(name), [f'mmkd {name}', *arguments])
    else:
        from mmkd_plugin.words import did_you_mean

        hint = did_you_mean(name, COMMANDS) or '; `mmkd --help` lists them'
        raise SystemExit(f'mmkd: error: there is no command {name}{hint}')


def tool(name: str) -> Path:
    """The program behind a command, in the installed package or in a clone.

    Args:
        name (str): One of :data:`COMMANDS`.
    """
    installed = _PACKAGE / '.mim' / 'tools'
    return (installed if installed.is_dir() else _PACKAGE.parent / 'tools') / COMMANDS[name]


def run(file: Path, argv: list[str]) -> None:
    """Runs a program as ``python FILE`` does, under another name in its messages.

    Args:
        file (Path): The program.
        argv (list[str]): Its name, and its arguments.
    """
    # Workers of a program that are not forks look for its file in this module.
    program = ModuleType('__main__')
    program.__file__ = str(file)
    sys.modules['__main__'] = program
    sys.argv = argv
    exec(compile(file.read_text(encoding='utf-8'), str(file), 'exec'), program.__dict__)


def as_typed(text: str) -> str:
    """Names the tools in a text as the user has called this one: ``mmkd train``, or its file.

    Args:
        text (str): A text that names files of ``tools/``.
    """
    if not sys.argv[0].startswith('mmkd '):
        return text
    for name, file in COMMANDS.items():
        text = re.sub(rf'(?<![\w/.])(python )?tools/{re.escape(file)}', f'mmkd {name}', text)
    return text


def help_text(width: int = 80) -> str:
    """The table of the commands, with the first line of each program's own help.

    Args:
        width (int): Columns of the screen. Defaults to 80.
    """
    left = max(map(len, COMMANDS)) + 4
    rows = [
        textwrap.fill(
            _about(tool(name)),
            max(width, left + 30),
            initial_indent=f'  {name}'.ljust(left),
            subsequent_indent=' ' * left,
        )
        for name in COMMANDS
    ]
    return '\n'.join(
        [
            'usage: mmkd COMMAND ...',
            '',
            'Knowledge distillation for mmsegmentation and mmdetection.',
            '',
            *rows,
            '',
            '`mmkd COMMAND --help` has the arguments of a command. A config is a path, or',
            'mmseg::..., mmdet::..., or mmkd::... for a recipe of this package.',
        ]
    )


def _about(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text(encoding='utf-8'))) or ''
    return ' '.join(text.partition('\n\n')[0].split()).replace('`', '')


if __name__ == '__main__':
    main()
