"""The architecture: imports go one way, and kinds of things are known in their folders alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / 'mmkd_plugin'

#: Each place imports from those in the lines above it, and from none in its own line.
LAYERS = (
    ('tracing', 'version', 'words'),
    (
        *('registry', 'saving', 'cores', 'seeds', 'taps', 'health'),
        *('pages', 'parts', 'prefixes', 'digit_scenes', 'categories'),
    ),
    ('libraries', 'config_text'),
    ('__main__', 'annotations', 'beside', 'old_keys'),
    ('suspects',),
    ('foreign',),
    ('runner_errors',),
    ('building', 'checkpoint_errors', 'checkpoint_fit', 'losses', 'stack'),
    ('assigners',),
    ('cache', 'checkpoint', 'connectors'),
    ('models',),
    ('explanations', 'queries', 'running', 'student_names', 'student_state', 'unlabelled'),
    ('views',),
    ('teachers',),
    ('cli', 'exporting', 'student', 'student_start', 'terms'),
    ('taught_maps',),
    ('diagnosis', 'ingredients', 'paraphrasing', 'plan'),
    ('distiller', 'fitting'),
    (
        'choosing',
        'converting',
        'metrics',
        'migrating',
        'run_config',
        'training_data',
        'visualization',
    ),
    ('base_variables', 'cache_writing', 'report'),
    ('training',),
)
LAYER = {place: number for number, places in enumerate(LAYERS) for place in places}


def modules() -> Iterator[tuple[str, Path]]:
    """Each file of the package, with the place that it lies in."""
    for file in sorted(PACKAGE.rglob('*.py')):
        place = file.relative_to(PACKAGE).parts[0].removesuffix('.py')
        if place != '__init__':
            yield place, file


def imports_of(file: Path) -> set[str]:
    """The places that a file imports from, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'mmkd_plugin':
            _, *rest = node.module.split('.')
            found |= {rest[0]} if rest else {name.name for name in node.names}
    return found


def test_every_place_has_a_layer():
    assert {place for place, _ in modules()} == set(LAYER)


@pytest.mark.parametrize(
    ('place', 'file'),
    [pytest.param(*one, id=str(one[1].relative_to(PACKAGE))) for one in modules()],
)
def test_imports_go_one_way(place: str, file: Path) -> None:
    wrong = {other for other in imports_of(file) - {place} if LAYER[other] >= LAYER[place]}
    assert not wrong, f'{file.name} imports {wrong}, which lie above or beside {place}'


KINDS = ('OnlineTeacher', 'CachedTeacher', 'SelfTeacher')


@pytest.mark.parametrize('place', ['distiller', 'plan', 'student', 'taught_maps', 'cache', 'terms'])
def test_no_kind_of_teacher_is_known_by_name(place: str) -> None:
    for _, file in ((p, f) for p, f in modules() if p == place):
        tree = ast.parse(file.read_text(encoding='utf-8'))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not names & set(KINDS), file


def test_kinds_of_teachers_are_told_apart_by_what_they_say():
    for place, file in modules():
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            if place != 'teachers' and isinstance(node, ast.Call):
                asked = ast.unparse(node.func) == 'isinstance' and ast.unparse(node.args[1])
                assert not asked or not any(kind in asked for kind in KINDS), file
