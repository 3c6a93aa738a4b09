"""The documentation: its configs build, its links lead somewhere, its reference is complete."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmkd_plugin import stack
from mmkd_plugin.teachers.online import Teacher
from mmkd_plugin.terms.schedule import CURVES, Schedule
from mmkd_plugin.terms.term import KEYS, Term
from tests import stock_models

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page for pattern in ('*.md', 'docs/**/*.md', 'configs/**/*.md') for page in ROOT.glob(pattern)
)
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)
LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)\)')


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def text_of(page: Path) -> str:
    return page.read_text(encoding='utf-8')


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(*languages: str) -> list[Any]:
    """The fenced blocks of all pages, as parameters with the page and the line as their name."""
    found = []
    for page in PAGES:
        text = text_of(page)
        for match in FENCE.finditer(text):
            if match[1] in languages:
                line = text.count('\n', 0, match.start()) + 1
                found.append(pytest.param(match[2], id=f'{name_of(page)}:{line}'))
    return found


def is_config(block: Any) -> bool:
    return bool(re.search(r'\bdistill=|mmkd_plugin\.Distiller', block.values[0]))


CONFIGS = [block for block in blocks('python') if is_config(block)]
COMPLETE = [block for block in CONFIGS if '_base_' in block.values[0]]
EXCERPTS = [
    block
    for block in CONFIGS
    if block not in COMPLETE and re.match(r'distill\s*=', block.values[0])
]


def test_there_are_configs_to_check():
    assert len(COMPLETE) >= 5 and len(EXCERPTS) >= 5


@pytest.mark.parametrize('text', blocks('python'))
def test_python_parses(text: str) -> None:
    ast.parse(re.sub(r'\{\{.*?\}\}', '{}', text))


def without_downloads(cfg: Any) -> Any:
    """Takes every pretrained file out of a config, and large crops."""
    if isinstance(cfg, dict):
        for key in cfg:
            if key in ('pretrained', 'checkpoint', 'init_cfg'):
                cfg[key] = None
            elif key == 'data_preprocessor' and 'size' in cfg[key]:
                cfg[key]['size'] = (128, 128)
            else:
                without_downloads(cfg[key])
    elif isinstance(cfg, (list, tuple)):
        for item in cfg:
            without_downloads(item)
    return cfg


@pytest.mark.parametrize('text', COMPLETE)
def test_a_complete_config_builds(text: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, width in (('my_student', 8), ('my_teacher', 16)):
        model = stock_models.pspnet(width)
        Path(f'{name}.py').write_text(f"default_scope = 'mmseg'\nmodel = {model!r}\n")
    Path('distilled.py').write_text(text)
    stack.prepare()
    cfg = Config.fromfile('distilled.py')
    if cfg.default_scope == 'mmdet':
        pytest.importorskip('mmcv.ops')
    terms = set(cfg.model.distill)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(without_downloads(cfg.model))
    assert set(model.distill) == terms
    assert list(model.state_dict()) == list(model.student.state_dict())


@pytest.mark.parametrize('text', EXCERPTS)
def test_the_terms_of_an_excerpt_are_accepted(text: str) -> None:
    scope: dict[str, Any] = {}
    exec(text, scope)
    for name, config in scope['distill'].items():
        Term.from_config(name, config, [config.get('teacher', 'teacher')])


@pytest.mark.parametrize('text', [b for b in EXCERPTS if b.id.startswith('docs/frskd.md')])
def test_the_terms_of_a_self_teacher_build(text: str) -> None:
    scope: dict[str, Any] = {}
    exec(text, scope)
    stack.prepare()
    detector = 'bbox_head' in text
    name = 'neck_retinanet_r18_fpn_1x_coco' if detector else 'stages_pspnet_r18-d8_*'
    (path,) = ROOT.glob(f'configs/frskd/frskd-{name}.py')
    cfg = Config.fromfile(path)
    if cfg.default_scope == 'mmdet':
        pytest.importorskip('mmcv.ops')
    cfg.model.distill = scope['distill']
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        MODELS.build(without_downloads(cfg.model))


# Links --------------------------------------------------------------------------------------------


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of a page."""
    titles = re.findall(r'^#+ +(.+?) *$', FENCE.sub('', text_of(page)), re.M)
    plain = [re.sub(r'\[([^\]]*)\]\([^)]*\)|`', r'\1', title) for title in titles]
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in plain}


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub('', text_of(page))):
        if re.match(r'\w+:', link):
            continue
        path, _, anchor = link.partition('#')
        target = Path(os.path.normpath(page.parent / path)) if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


def test_the_pages_are_listed_in_the_readme():
    readme = text_of(ROOT / 'README.md')
    for page in (ROOT / 'docs').glob('*.md'):
        assert f'(docs/{page.name})' in readme, page.name


# Completeness -------------------------------------------------------------------------------------


def test_the_reference_names_every_key():
    page = text_of(ROOT / 'docs' / 'distiller.md')
    rows = [line.split('|')[1] for line in page.splitlines() if line.startswith('| `')]
    documented = {key for row in rows for key in re.findall(r'`(\w+)`', row)}
    keys = {*KEYS, *inspect.signature(Teacher).parameters}
    keys |= {field.name for field in dataclasses.fields(Schedule)}
    keys |= {*inspect.signature(MODELS.get('mmkd_plugin.Distiller')).parameters}
    assert not keys - documented
    for curve in CURVES:
        assert f"`'{curve}'`" in page


def raised_texts() -> set[str]:
    """The beginnings of the longer strings in the source, of which error messages are made."""
    pieces = set()
    for file in [*(ROOT / 'mmkd_plugin').rglob('*.py'), *(ROOT / 'tools').glob('*.py')]:
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                first_line = node.value.strip().split('\n')[0]
                pieces.add(first_line[:40])  # a page may quote less than all of it
    return {piece for piece in pieces if len(piece) >= 12}


FOREIGN = ('mmsegmentation is not', 'ModuleNotFoundError', 'AssertionError', 'WeightsUnpickler',
           'KeyError', 'ValueError: SyncBatchNorm')  # fmt: skip


def test_messages_that_the_pages_quote_are_raised():
    pieces = raised_texts()
    page = text_of(ROOT / 'docs' / 'troubleshooting.md')
    quoted = [match[2] for match in FENCE.finditer(page) if match[1] == 'text']
    lines = [line for block in quoted for line in block.splitlines() if line[0] != ' ']
    assert len(lines) > 30
    for line in lines:
        assert line.startswith(FOREIGN) or any(piece in line for piece in pieces), line
