"""Every code block of the pages: run, read by the program it is for, or marked with the reason.

A comment right above a block, ``<!-- not run: why -->``, takes it out. What then remains:

- ``python``: a program runs, from the top of the page down, beside files as the page has them; a
  config is parsed, and its types are found; :mod:`tests.test_docs` builds whole ones that distil.
- ``shell``: each command line is parsed by the tool itself, so a wrong option is found; ``make``
  has the target; a program of others needs the mark.
- ``math`` is converted as the site does it.
- ``text`` and ``console`` are what programs print; ``mermaid`` is a diagram.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmkd_plugin import registry, stack
from mmkd_plugin.__main__ import COMMANDS
from mmkd_plugin.cli import read_config
from tests import runs, stock_models
from tests.pages import BLOCKS, PAGES, ROOT, Block, text_of
from tests.tools.tool_runs import load_tool, save_random_weights

LANGUAGES = {'python', 'shell', 'text', 'console', 'math', 'mermaid', '{toctree}', '{eval-rst}'}
PYTHON = [b for b in BLOCKS if b.language == 'python']
SHELL = [b for b in BLOCKS if b.language == 'shell']
HERE = re.compile(r'(tools|configs|benchmarks|docs|tests)/[\w./-]*\w')
"""A path in the repository, as a word of a command."""


def is_program(block: Block) -> bool:
    """Whether a Python block does something, where a config only says something."""
    body = ast.parse(re.sub(r'\{\{.*?\}\}', '{}', block.text)).body
    return '_base_ =' not in block.text and any(not isinstance(x, ast.Assign) for x in body)


PROGRAMS = [b for b in PYTHON if is_program(b)]
CONFIGS = [
    b
    for b in PYTHON
    if not (is_program(b) or b.reason or ('_base_' in b.text and 'mmkd_plugin.Distiller' in b.text))
]


def test_every_block_is_of_a_known_kind() -> None:
    for block in BLOCKS:
        assert block.language in LANGUAGES, f'{block.place}: a block of {block.language!r}'
    assert len(PROGRAMS) > 10 and len(CONFIGS) > 50 and len(SHELL) > 40


# Python -------------------------------------------------------------------------------------------


def write_model(folder: Path, name: str, data: Path) -> None:
    """Writes a config that trains a tiny segmentor, its weights, and a run's checkpoint of them."""
    screen = dict(type='SegLocalVisualizer', name=name)
    cfg = runs.config(
        stock_models.pspnet(8, 3), data, folder / 'work_dirs' / name, 1, visualizer=screen
    )
    runs.validated(cfg, data)
    cfg.merge_from_dict({f'test_{key}': cfg[f'val_{key}'] for key in ('dataloader', 'evaluator')})
    cfg.test_cfg = dict(type='TestLoop')
    (folder / f'{name}.py').write_text(cfg.pretty_text)
    save_weights(folder / f'{name}.py', folder / f'{name}.pth', runs.SEG_CLASSES)


def save_weights(config: Path, weights: Path, classes: list[str]) -> None:
    """Saves random weights of a config with the names of the classes, as a run does."""
    save_random_weights(config, weights)
    meta = dict(dataset_meta=dict(classes=classes, palette=[[0, 0, 0]] * len(classes)))
    torch.save(dict(torch.load(weights), meta=meta), weights)


def of_checkpoints(folder: Path, data: Path) -> dict[str, Any]:
    for name in ('student', 'student_config', 'theirs'):
        write_model(folder, name, data)
    run = folder / 'work_dirs' / 'run' / 'iter_80000.pth'
    run.parent.mkdir(parents=True)
    run.write_bytes((folder / 'student_config.pth').read_bytes())
    return {}


def of_export(folder: Path, data: Path) -> dict[str, Any]:
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    write_model(folder, 'student', data)
    tool = load_tool('export_onnx')
    model = tool.student_of(read_config(str(folder / 'student.py')), str(folder / 'student.pth'))
    tool.export(tool.wrapped(model), folder / 'student.onnx', (64, 64), fixed=True)
    images = folder / 'data/digit_scenes/img_dir/train'
    images.mkdir(parents=True)
    for file in (folder / 'image.png', images / '0.png'):
        cv2.imwrite(str(file), cv2.imread(str(data / 'images/0.png')))
    return {}


def of_get_started(folder: Path, data: Path) -> dict[str, Any]:
    write_model(folder, 'student', data)
    write_model(folder, 'distilled', data)
    cv2.imwrite(str(folder / 'image.png'), np.zeros((64, 64, 3), np.uint8))
    return {}


def of_explanations(folder: Path, data: Path) -> dict[str, Any]:
    model = stock_models.build(stock_models.pspnet())
    inputs, samples = stock_models.batch(model)
    return dict(model=model, inputs=inputs, data_samples=samples)


def of_bcos(folder: Path, data: Path) -> dict[str, Any]:
    (folder / 'configs').symlink_to(ROOT / 'configs')
    config = 'configs/digit_scenes/bcos-fpn_r18-w32_1k_digit-scenes-128x128.py'
    save_weights(ROOT / config, folder / 'iter_1000.pth', ['none', *'0123456789'])
    return {}


def of_tutorial(folder: Path, data: Path) -> dict[str, Any]:
    write_model(folder, 'student', data)
    colours = np.array([[0, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    for kind in ('images', 'labels'):
        (folder / 'raw' / kind).mkdir(parents=True)
    for image in (data / 'images').iterdir():
        labels = cv2.imread(str(data / 'masks' / image.name), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(folder / 'raw/images' / image.name), cv2.imread(str(image)))
        cv2.imwrite(str(folder / 'raw/labels' / image.name), colours[labels][..., ::-1])
    return {}


def of_taps(folder: Path, data: Path) -> dict[str, Any]:
    write_model(folder, 'my_student', data)
    return {}


#: What lies in the folder of a page's programs, and the names that they find.
SETUP: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    'docs/bcos.md': of_bcos,
    'docs/checkpoints.md': of_checkpoints,
    'docs/explanations.md': of_explanations,
    'docs/export.md': of_export,
    'docs/get_started.md': of_get_started,
    'docs/taps.md': of_taps,
    'docs/tutorial.md': of_tutorial,
}


@pytest.fixture
def registries_kept() -> Iterator[None]:
    """Forgets what a program registers."""
    registry.MODELS.get('Distiller')  # imports all that this package registers
    kept = dict(registry.MODELS.module_dict)
    yield
    registry.MODELS.module_dict.clear()
    registry.MODELS.module_dict.update(kept)


RUN = [b for b in PROGRAMS if not b.reason]


@pytest.mark.parametrize('page', sorted({b.page for b in RUN}))
def test_programs_run(
    page: str, data: Path, tmp_path: Path, monkeypatch, own_globals, registries_kept
) -> None:
    if 'mmdet' in page:
        pytest.importorskip('mmcv.ops')
    stack.prepare()
    scope = SETUP[page](tmp_path, data) if page in SETUP else {}
    monkeypatch.chdir(tmp_path)
    for block in RUN:
        if block.page == page:
            exec(compile(block.text, block.place, 'exec'), scope)


def types_in(part: Any) -> Iterator[str]:
    """The types of ours in a config."""
    if isinstance(part, dict):
        kind = part.get('type')
        if isinstance(kind, str) and kind.startswith('mmkd_plugin.'):
            yield kind.removeprefix('mmkd_plugin.')
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for item in part:
            yield from types_in(item)


REGISTRIES = [
    getattr(registry, name) for name in ('DATASETS', 'HOOKS', 'METRICS', 'MODELS', 'TRANSFORMS')
]
OF_PAGES = {n for b in PROGRAMS for n in re.findall(r'^class (\w+)', b.text, re.M)}


NAMED = re.compile(r'# ([\w/]+\.py)\n')
"""The first line of a block that a reader saves as a file."""


def parsed(block: Block, folder: Path) -> Config:
    """A config as mmengine reads it, beside those of its page; its base may be a recipe."""
    for other in CONFIGS:
        if other.page == block.page and (name := NAMED.match(other.text)):
            (folder / name[1]).write_text(other.text, 'utf-8')

    def placed(match: re.Match) -> str:
        base = match[1]
        if '::' in base or (folder / base).exists():
            return match[0]
        found = [*ROOT.glob(base), *ROOT.glob(f'configs/**/{base}')]
        assert found, f'{block.place}: there is no {base}'
        return repr(found[0].as_posix())

    text = re.sub(
        r'^_base_ = .*$', lambda x: re.sub("'([^']+)'", placed, x[0]), block.text, flags=re.M
    )
    (folder / 'block.py').write_text(text, 'utf-8')
    return Config.fromfile(folder / 'block.py', import_custom_modules=False)


@pytest.mark.parametrize('block', CONFIGS, ids=lambda b: b.place)
def test_configs_are_read(block: Block, tmp_path: Path) -> None:
    stack.prepare()
    for name in {*types_in(parsed(block, tmp_path)._cfg_dict.to_dict())} - OF_PAGES:
        assert any(r.get(name) for r in REGISTRIES), f'{block.place}: no {name}'


# Shell --------------------------------------------------------------------------------------------


def lines_of(block: Block) -> list[list[str]]:
    """The commands of a block as words, without comments; a line that ends with ``\\`` goes on."""
    text = block.text.replace('\\\n', ' ')
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


class Parser(BaseException):
    """Ends a tool where it would read its arguments."""


def parser_of(tool: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser of a program under ``tools/``."""

    def stop(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise Parser(self)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'parse_args', stop)
        patch.setattr(sys, 'argv', [tool])
        with pytest.raises(Parser) as caught:
            load_tool(tool.removeprefix('tools/').removesuffix('.py')).main()
    return caught.value.args[0]


def check_python(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks the words behind ``python``."""
    if any(words == [name[1]] for b in RUN if (name := NAMED.match(b.text))):
        return  # a program of the page, which runs
    if words[0] == '-m':
        module, arguments = words[1], words[2:]
        if module in ('pytest', 'sphinx'):
            return
        if module == 'mmkd_plugin':
            check_python([f'tools/{COMMANDS[arguments[0]]}', *arguments[1:]], monkeypatch)
            return
        program = importlib.import_module(module)
        if hasattr(program, '__path__'):
            program = importlib.import_module(f'{module}.__main__')
        parser = program.parser()
    else:
        parser, arguments = parser_of(words[0], monkeypatch), words[1:]
    parser.parse_args(arguments)


def check_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Checks a command of ours; returns whether it is one."""
    while words and re.fullmatch(r'\w+=.*', words[0]):  # variables before a command
        words = words[1:]
    if not words:
        return True
    program, *rest = words
    if program in ('python', '.venv/bin/python'):
        check_python(rest, monkeypatch)
    elif program == 'torchrun':
        start = next(i for i, word in enumerate(rest) if word == '-m' or word.startswith('tools/'))
        check_python(rest[start:], monkeypatch)
    elif program == 'mmkd':
        check_python(['-m', 'mmkd_plugin', *rest], monkeypatch)
    elif program == 'make':
        targets = [word for word in rest if '=' not in word]
        makefile = (ROOT / 'Makefile').read_text('utf-8')
        assert all(re.search(f'^{target}:', makefile, re.M) for target in targets), targets
    elif program.startswith('tools/'):
        assert (ROOT / program).stat().st_mode & 0o100, f'{program} cannot be run'
    elif program == 'pip' and rest[0] in ('install', 'wheel'):
        lists = [file.read_text('utf-8') for file in (ROOT / 'requirements').glob('*.txt')]
        for name in [w for w in rest[1:] if not w.startswith(('-', '.', 'dist'))]:
            assert any(name in text for text in lists), f'{name} is in no list of requirements/'
    else:
        return False
    return True


@pytest.mark.parametrize('block', SHELL, ids=lambda b: b.place)
def test_commands_are_those_of_the_tools(block: Block, monkeypatch, capsys) -> None:
    for words in lines_of(block):
        paths = [word.partition('=')[2] or word for word in words if '{' not in word]
        for path in paths:
            assert not HERE.fullmatch(path) or (ROOT / path).exists(), f'there is no {path}'
        try:
            ours = check_command(words, monkeypatch)
        except SystemExit:
            pytest.fail(f'{shlex.join(words)}: {capsys.readouterr().err}')
        assert ours or block.reason, f'{words[0]} is not ours: mark the block as not run'


# Formulas -----------------------------------------------------------------------------------------

FORMULAS = [b for b in BLOCKS if b.language == 'math']


@pytest.mark.parametrize('block', FORMULAS, ids=lambda b: b.place)
def test_formulas_can_be_drawn(block: Block) -> None:
    math = pytest.importorskip('docutils.utils.math.latex2mathml')
    assert '<mi>' in math.tex2mathml(block.text.strip(), as_block=True)


# Marks --------------------------------------------------------------------------------------------


def test_a_wrong_option_would_be_found(monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit):
        check_command(['python', 'tools/train.py', 'a.py', '--workdir', 'b'], monkeypatch)
    assert 'unrecognized arguments: --workdir' in capsys.readouterr().err


def test_marks_stand_above_blocks() -> None:
    marks = sum(len(re.findall(r'^<!-- not run:', text_of(page), re.M)) for page in PAGES)
    assert marks == sum(bool(block.reason) for block in BLOCKS)
