"""The tool's choice for the pairs of docs/choosing.md, against what was measured there."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from mmengine.config import Config
from torch import nn

from benchmarks.gains.tables import ROOT
from mmkd_plugin.choosing import METHODS, Choice, choose, look_at_student, look_at_teacher
from mmkd_plugin.choosing.methods import MEASURED
from mmkd_plugin.cli import read_config
from mmkd_plugin.taps import Tap, places_of
from tests.runs import HAS_OPS
from tests.stock_models import build

CPU = torch.device('cpu')
ROW = re.compile(r'\| \[([\w-]+)\]\(\.\./(configs/\S+)\) \| \S+ \| ([+-][\d.]+)')
UNCLEAR = re.compile(r'([\w-]+) \(([+-][\d.]+)\)')


#: The models of each task that many methods teach; others have one that needs them.
MODELS = dict(segmentation='fpn', detection='retinanet')


def sections(task: str) -> list[str]:
    """The tables of a task with these models, DigitScenes first."""
    text = (ROOT / 'docs' / 'choosing.md').read_text(encoding='utf-8')
    heading = f', {task}: {MODELS[task]}\n'
    return [one for one in text.split('\n## ')[1:] if heading in one]


def helps(section: str) -> dict[str, float]:
    """The gain of each method with a clear one."""
    return {name: float(gain) for name, _, gain in ROW.findall(section)}


def gain_of(method: str, section: str) -> float:
    """The gain of a method, clear or not; 0 if it was not measured."""
    unclear = {name: float(gain) for name, gain in UNCLEAR.findall(section)}
    return (unclear | helps(section)).get(method, 0.0)


def recipes(task: str) -> dict[str, Config]:
    """The recipes that help on DigitScenes, by their methods."""
    rows = ROW.findall(sections(task)[0])
    return {name: Config.fromfile(ROOT / file) for name, file, _ in rows}


def compared(terms: dict[str, Any], model: nn.Module) -> list[tuple]:
    """Where terms compare a model, and by which loss, whatever they are called and weigh."""
    found = []
    for term in terms.values():
        taps = term.get('tap', [])  # one through the teacher's head has others
        taps = taps if isinstance(taps, list) else [taps]
        places = [str(place.path) for tap in taps for place in places_of(model, Tap.parse(tap))]
        loss = sorted((k, v) for k, v in term['loss'].items() if k != 'loss_weight')
        found.append((places, loss))
    return sorted(found)


def choice(cfg: Config) -> tuple[Choice, nn.Module]:
    """What the tool takes for student and teacher of a recipe, and the student."""
    scope = cfg.default_scope
    teacher = read_config(cfg.model.teacher.config).model
    student, teacher = (build(dict(one, _scope_=scope)) for one in (cfg.model.student, teacher))
    theirs = look_at_teacher(teacher, None, CPU, student.data_preprocessor)
    return choose(look_at_student(student, None, CPU), theirs), student


@pytest.mark.parametrize('task', ['segmentation', 'detection'])
def test_the_choice_is_that_of_the_tables(task):
    if task == 'detection' and not HAS_OPS:
        pytest.skip('mmcv has no compiled ops')
    rows = recipes(task)
    taken, student = choice(next(iter(rows.values())))
    assert taken.measured
    ours = compared(taken.terms, student)
    (method,) = (name for name, cfg in rows.items() if compared(cfg.model.distill, student) == ours)

    every = sections(task)
    assert len(every) > 1
    assert all(method in helps(section) for section in every)
    known = {one.loss['type'] for methods in METHODS.values() for one in methods.values()}
    for other, cfg in rows.items():
        if {term['loss']['type'] for term in cfg.model.distill.values()} <= known:
            better = [gain_of(other, section) > gain_of(method, section) for section in every]
            assert not all(better), f'{other} is better on each data set'


def test_what_counts_as_measured_has_a_row():
    """A row of the page has the loss of each method that counts as measured, at the same place."""
    places = {'scores': 'logits', 'features': 'features', 'other neck': 'neck', 'head': 'head'}
    text = (ROOT / 'docs' / 'choosing.md').read_text(encoding='utf-8')
    names = {name for name, _, _ in ROW.findall(text)} | {name for name, _ in UNCLEAR.findall(text)}
    for kind, method in MEASURED:
        loss = METHODS[kind][method].loss['type']
        files = (ROOT / 'configs').glob(f'*/*-{places[kind]}_*digit-scenes*.py')
        known = {file.name.partition('_')[0] for file in files if loss in file.read_text()}
        assert known & names, (kind, method)
