"""The documentation: its configs build, its links lead somewhere, its reference is complete."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmkd_plugin import losses, stack
from mmkd_plugin.registry import MODELS as MMKD_MODELS
from mmkd_plugin.taps import Tap
from mmkd_plugin.teachers.cached import CachedTeacher
from mmkd_plugin.teachers.configs import teacher_configs
from mmkd_plugin.teachers.inference import Inference
from mmkd_plugin.teachers.online import OnlineTeacher
from mmkd_plugin.teachers.self_teacher import SelfTeacher
from mmkd_plugin.terms.lines import KEYS
from mmkd_plugin.terms.needs import FROM_BATCH, FROM_NORM, FROM_RUN
from mmkd_plugin.terms.schedule import CURVES, Schedule
from mmkd_plugin.terms.term import Term
from mmkd_plugin.unlabelled.settings import KEYS as UNLABELLED
from tests import stock_models
from tests.models.foundation.weights import stand_in
from tests.pages import FENCE, PAGES, ROOT, blocks, name_of, text_of

LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)\)')


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def is_config(block: Any) -> bool:
    return bool(re.search(r'\bdistill=|mmkd_plugin\.Distiller', block.values[0]))


CONFIGS = [block for block in blocks('python') if is_config(block)]
COMPLETE = [*{b.values[0]: b for b in CONFIGS if '_base_' in b.values[0]}.values()]  # each once
EXCERPTS = [
    block
    for block in CONFIGS
    if block not in COMPLETE and re.match(r'distill\s*=', block.values[0])
]


def test_there_are_configs_to_check():
    assert len(COMPLETE) >= 5 and len(EXCERPTS) >= 5


@pytest.mark.parametrize('text', blocks('python'))
def test_python_parses(text: str) -> None:
    assert ast.parse(re.sub(r'\{\{.*?\}\}', '{}', text)).body, 'nothing but comments'


def without_downloads(cfg: Any) -> Any:
    """Takes every pretrained file out of a config, and large crops."""
    if isinstance(cfg, dict):
        for key in cfg:
            if key in ('pretrained', 'checkpoint', 'init_cfg'):
                cfg[key] = None
            elif key == 'data_preprocessor' and 'size' in cfg[key]:
                cfg[key]['size'] = (128, 128)
            elif key == 'source':
                cfg['path'] = stand_in(cfg['source'], cfg['path'])
            else:
                without_downloads(cfg[key])
    elif isinstance(cfg, (list, tuple)):
        for item in cfg:
            without_downloads(item)
    return cfg


@pytest.mark.parametrize('text', COMPLETE)
def test_a_complete_config_builds(text: str, tmp_path: Path, monkeypatch) -> None:
    if 'mmpretrain::' in text:
        pytest.importorskip('mmpretrain')
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
        assert Term.from_config(name, config, [config.get('teacher', 'teacher')]).name == name


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
        model = MODELS.build(without_downloads(cfg.model))
    assert set(model.distill) == set(scope['distill'])


LOSSES = [block for block in blocks('python') if '(nn.Module):' in block.values[0]]


@pytest.mark.parametrize('text', [b for b in LOSSES if b.id.startswith('docs/adding_a_loss.md')])
def test_a_loss_of_the_guide_teaches(text: str) -> None:
    pytest.importorskip('mmcv.ops')
    scope: dict[str, Any] = {}
    exec(text, scope)
    (name,) = re.findall(r'^class (\w+)', text, re.M)
    try:
        tap = 'bbox_head' if "tap='bbox_head'" in text else 'neck'
        line = dict(tap=tap, loss=dict(type=f'mmkd_plugin.{name}'))
        model = stock_models.distiller(
            stock_models.retinanet(), stock_models.retinanet(16), dict(own=line)
        ).train()
    finally:
        MMKD_MODELS.module_dict.pop(name)
    own = list(model.distill.own.parameters())
    model(*stock_models.batch(model), mode='loss')['distill.own.loss'].backward()
    assert all(p.grad is not None for p in own) and (not own or any(p.grad.any() for p in own))
    assert any(p.grad is not None and p.grad.any() for p in model.student.neck.parameters())
    assert list(model.state_dict()) == list(model.student.state_dict())


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


def test_the_pages_are_listed_in_the_index():
    index = text_of(ROOT / 'docs' / 'index.md')
    for page in (ROOT / 'docs').rglob('*.md'):
        name = page.relative_to(ROOT / 'docs').as_posix()
        assert name == 'index.md' or f'({name})' in index, name


def test_the_losses_are_named_in_the_readme():
    readme = text_of(ROOT / 'README.md')
    names = [name for name in losses.__all__ if name.endswith('Loss')]
    assert names and [name for name in names if f'`{name}`' not in readme] == []


# Form ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_no_line_of_prose_is_longer_than_100_characters(page: Path) -> None:
    text = FENCE.sub(lambda block: '\n' * block[0].count('\n'), text_of(page))
    for number, line in enumerate(text.splitlines(), 1):
        length = len(re.sub(r'\]\([^)\s]*\)', ']', line))  # a link cannot be broken
        assert length <= 100 or line.startswith('|'), f'line {number} has {length}'


# Completeness -------------------------------------------------------------------------------------


def documented(page: str) -> set[str]:
    """The names in the first cells of the tables of a page."""
    lines = text_of(ROOT / 'docs' / page).splitlines()
    cells = [line.split('|')[1] for line in lines if line.startswith('| `')]
    return {name for cell in cells for name in re.findall(r'`(\w+)`', cell)}


def arguments(kind: Any) -> set[str]:
    return {*inspect.signature(kind).parameters}


def test_the_reference_names_every_key():
    distiller = MODELS.get('mmkd_plugin.Distiller')
    needed = {
        'distiller.md': {*KEYS, *arguments(Schedule), *arguments(distiller)},
        'teachers.md': arguments(OnlineTeacher) | arguments(Inference),
        'cached_teacher.md': arguments(CachedTeacher),
        'frskd.md': arguments(SelfTeacher),
        'unlabelled.md': {*UNLABELLED},
        'adding_a_loss.md': {*FROM_BATCH, *FROM_RUN, *FROM_NORM},
    }
    for page, keys in needed.items():
        assert not keys - documented(page), page


def test_the_reference_names_every_curve():
    page = text_of(ROOT / 'docs' / 'distiller.md')
    for curve in CURVES:
        assert f"`'{curve}'`" in page


def test_the_tables_of_taps_hold_taps():
    tables = re.findall(r'^\|.*', text_of(ROOT / 'docs' / 'taps.md'), re.M)
    taps = [tap for row in tables for tap in re.findall(r"`'?(\w[\w.@[\]-]*)'?`", row)]
    assert len(taps) > 60
    for tap in taps:
        assert str(Tap.parse(tap)) == tap


# Error messages -----------------------------------------------------------------------------------

QUOTED = [
    line
    for match in FENCE.finditer(text_of(ROOT / 'docs' / 'troubleshooting.md'))
    if match[1] == 'text'
    for line in match[2].splitlines()
]
CWD = dict(type='mmkd_plugin.ChannelWiseLoss')


def term(teachers: tuple[str, ...] = ('teacher',), **config: Any) -> Term:
    return Term.from_config('cwd', config, teachers)


def connect(student: Any, teacher: Any, **config: Any) -> None:
    student, teacher = ([torch.zeros(s) for s in shapes] for shapes in (student, teacher))
    term(loss=CWD, **config).connect(student, teacher)


def distil(**config: Any) -> None:
    student = torch.nn.Identity()
    student.data_preprocessor = None
    MODELS.build(
        dict(
            type='mmkd_plugin.Distiller',
            student=student,
            teacher=dict(config='my_teacher.py', checkpoint='my_teacher.pth'),
            distill=config,
        )
    )


MISTAKES = {
    'key of a term': lambda: term(taps='neck', loss=CWD),
    'key of a teacher': lambda: teacher_configs(dict(config='a.py', ckpt='a.pth')),
    'key of a loss': lambda: term(tap='neck', loss=dict(CWD, temperature=4)),
    'key of a schedule': lambda: term(tap='neck', loss=CWD, schedule=dict(begin=100)),
    'no loss': lambda: term(tap='neck'),
    'no tap': lambda: term(loss=CWD),
    'no name of a term': lambda: distil(tap='neck', loss=CWD),
    'no config': lambda: teacher_configs(dict(checkpoint='a.pth')),
    'no checkpoint': lambda: teacher_configs(dict(config='a.py')),
    'no such loss': lambda: term(tap='neck', loss=dict(type='mmkd_plugin.ChannelwiseLoss')),
    'no teacher': lambda: term(('psp', 'mit'), tap='neck', loss=CWD),
    'no tap of this form': lambda: term(tap='backbone.layer4[0].conv1', loss=CWD),
    'other channels': lambda: connect(
        [(1, 16, 16, 16)], [(1, 32, 16, 16)], tap='decode_head.bottleneck', connector=None
    ),
    'other number of maps': lambda: connect([(1, 8, 4, 4)] * 5, [(1, 8, 4, 4)] * 4, tap='neck'),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_is_answered_as_the_page_says(mistake: str) -> None:
    with pytest.raises(ValueError) as error:
        MISTAKES[mistake]()
    assert str(error.value) in QUOTED


EDGE = ' .,:;'
HOLE = '\0'


def strings_in(node: ast.AST) -> Iterator[str]:
    """The strings in a piece of source but for docstrings; f-strings whole, with holes."""
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield ''.join(x.value if isinstance(x, ast.Constant) else HOLE for x in node.values)
        children = [x for x in children if not isinstance(x, ast.Constant)]
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    for child in children:
        yield from strings_in(child)


@functools.cache
def templates() -> tuple[str, ...]:
    """The lines that the source can print, the longest first."""
    files = [*(ROOT / 'mmkd_plugin').rglob('*.py'), *(ROOT / 'tools').rglob('*.py')]
    texts = [text for file in files for text in strings_in(ast.parse(file.read_text('utf-8')))]
    lines = {line.strip(EDGE) for text in texts for line in text.split('\n')}
    long = [line for line in lines if len(re.findall('[A-Za-z]', line)) >= 6]
    return tuple(sorted(long, key=len, reverse=True))


def is_value(text: str) -> bool:
    """Whether a text can be what fills a hole: a few words, or a list of names."""
    text = re.sub(r'\([^()]*\)', '', text)
    return len(text.split()) <= 4 or all(
        len(item.split()) <= 2 for item in re.split(', | or ', text)
    )


@functools.cache
def is_printed(text: str) -> bool:
    """Whether the source can print a text: all of it comes from templates, but for values."""
    text = text.strip(EDGE)
    for template in templates():
        pattern = re.escape(template).replace(HOLE * 2, r'(\S*)(.*?)').replace(HOLE, '(.*?)')
        match = re.fullmatch(pattern, text)
        if match and all(is_value(part) or is_printed(part) for part in match.groups()):
            return True
    head, _, rest = text.partition(': ')  # the place in the config, the name of a tool
    if rest and is_value(head) and is_printed(rest):
        return True
    return any(
        is_printed(text[: gap.start()]) and is_printed(text[gap.end() :])
        for gap in re.finditer(r'[.,:;] ', text)
    )


FOREIGN = ('mmsegmentation is not', 'mmengine does not', 'ModuleNotFoundError', 'AssertionError',
           'WeightsUnpickler', 'KeyError')  # fmt: skip


def test_a_misquoted_message_would_be_found():
    quoted = 'distill.ofd: PixelWiseLoss needs segmentation labels (`labels`); this batch has none'
    assert is_printed(quoted)
    assert not is_printed(quoted.replace('this batch has none', 'there are none in this batch'))
    assert not is_printed(quoted + ', so leave the term out of the config')


@pytest.mark.parametrize('line', [line for line in QUOTED if not line.startswith(FOREIGN)])
def test_messages_that_the_page_quotes_are_printed(line: str) -> None:
    assert is_printed(line)


def test_there_are_messages_to_check():
    assert len(QUOTED) > 50
