"""The tables: which recipes of ``configs/`` are compared with one another."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from mmengine.config import Config

from benchmarks.gains.augmenting import zoo
from benchmarks.gains.split import FEW_SEEDS
from benchmarks.gains.training import make_digit_scenes
from mmkd_plugin.cli import UsageError, is_distilled, read_config
from mmkd_plugin.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'


@dataclass(frozen=True)
class Score:
    """How a task is scored.

    Args:
        metric (str): Name among mmengine's scalars.
        title (str): Name in tables.
        percent (float): Factor that turns it into a percentage.
    """

    metric: str
    title: str
    percent: float


SCORES = {
    'segmentation': Score('mIoU', 'mIoU', 1),
    'detection': Score('coco/bbox_mAP', 'bbox mAP', 100),
}
TASKS = {'mmseg': 'segmentation', 'mmdet': 'detection'}


@dataclass(frozen=True)
class Data:
    """A data set and how much is run on it.

    Args:
        name (str): As in ``--only`` and in runs.jsonl.
        title (str): Its name for readers.
        pattern (str): Its configs, below ``configs/``; plain ones are students and teachers.
        seeds (int): Seeds of each method. Defaults to 3.
        length (float): Iterations of students, in multiples of the recipes'. Defaults to 1.
        teacher_length (float): The same of the teacher. Defaults to 1.
        few_seeds (int): Seeds with few labels. Defaults to 5.
        make (Callable, optional): Writes the data or checks it. Defaults to None: the data must be
            there.
        augment (Callable, optional): Changes the train pipeline of every config. Such tables are
            run only if ``--only`` begins with their name, and no recipe ships with what they find.
            Defaults to None: as the recipes say.
        methods (tuple[str, ...]): How the names of the recipes begin that take part. Defaults to
            none: all do.
        caches (dict[str, tuple[str, ...]]): For each way to cache the teacher, options of
            ``tools/cache_teacher.py``: each recipe also runs with a cache that they write, and that
            method has this name behind it. Defaults to none.
    """

    name: str
    title: str
    pattern: str
    seeds: int = 3
    length: float = 1.0
    teacher_length: float = 1.0
    few_seeds: int = FEW_SEEDS
    make: Callable[[], None] | None = None
    augment: Callable[[Config], None] | None = None
    methods: tuple[str, ...] = ()
    caches: dict[str, tuple[str, ...]] = field(hash=False, default_factory=dict)


#: Recipes that are compared with themselves and a cached teacher, and the ways to cache it.
COMPARED = ('pixel-wise-logits_fpn', 'cwd-logits_fpn', 'cwd-neck_retinanet')
CACHES = {'views8': ('--views', '8', '--dtype', 'compact'), 'whole': ()}

DATA = (
    # Half the iterations, so that all tables take two cores about fifteen hours.
    Data('digit_scenes', 'DigitScenes', '*digit-scenes*.py', length=0.5, make=make_digit_scenes),
    Data('camvid', 'CamVid', '*camvid*.py', seeds=5),
    Data('bccd', 'BCCD', '*bccd*.py', seeds=5),
    # An online teacher and its caches, where each epoch shows other pictures.
    Data(
        'digit_scenes_zoo',
        "DigitScenes with the zoo's augmentation",
        '*digit-scenes*.py',
        seeds=5,
        teacher_length=3.0,
        make=make_digit_scenes,
        augment=zoo,
        methods=COMPARED,
        caches=CACHES,
    ),
    Data(
        'camvid_zoo',
        "CamVid with the zoo's augmentation",
        '*camvid*.py',
        seeds=5,
        augment=zoo,
        methods=COMPARED,
        caches=CACHES,
    ),
)


@dataclass(frozen=True)
class Table:
    """The methods that teach one student.

    Args:
        data (Data): The data set.
        task (str): ``'segmentation'`` or ``'detection'``.
        student (Path): Config of the student alone.
        teacher (Path, optional): Config of the teacher; None if every method is without.
        recipes (dict[str, Path]): Configs by the name of the method.
        taught (dict[str, int]): How many teachers a method has, if any. Of several each is the same
            with another seed.
        few (dict[str, Path]): Configs of methods with images without labels, which are run with few
            labels.
        iterations (dict[str, int]): Of each method, of ``'student'`` and of ``'teacher'``.
        bring (dict[str, list[dict]]): The teachers of a method that bring their weights, as models.
        cached (dict[str, tuple[str, ...]]): The methods whose teacher is cached, with options of
            ``tools/cache_teacher.py``.
    """

    data: Data
    task: str
    student: Path
    teacher: Path | None
    recipes: dict[str, Path] = field(hash=False)
    taught: dict[str, int] = field(hash=False, default_factory=dict)
    iterations: dict[str, int] = field(hash=False, default_factory=dict)
    few: dict[str, Path] = field(hash=False, default_factory=dict)
    bring: dict[str, list[dict]] = field(hash=False, default_factory=dict)
    cached: dict[str, tuple[str, ...]] = field(hash=False, default_factory=dict)

    @property
    def name(self) -> str:
        """Data set, task and student."""
        return f'{self.data.name}/{self.task}/{self.student.stem}'


def find_tables(data: Sequence[Data], configs: Path | None = None) -> list[Table]:
    """Sorts the recipes by data set and student.

    A recipe belongs to the plain config with which its name ends.

    Args:
        data (Sequence[Data]): The data sets.
        configs (Path): Where configs are. Defaults to those of the repository.

    Raises:
        UsageError: If a recipe has no student, recipes of one student have several teachers, or a
            config counts epochs.
    """
    configs, found = configs or CONFIGS, []
    for one in data:
        read = {
            path: read_config(str(path))
            for path in sorted(configs.rglob(one.pattern))
            if '_base_' not in path.relative_to(configs).parts
        }
        recipes = _by_student(read)
        for student in sorted(recipes, key=lambda path: (-len(recipes[path]), path)):
            members = [path for path in recipes[student] if path.stem.startswith(one.methods or '')]
            if members:
                found.append(_table(one, student, {path: read[path] for path in members}, configs))
    return found


def _by_student(read: dict[Path, Config]) -> dict[Path, list[Path]]:
    """The recipes of each student alone: the plain config with which their names end."""
    plain = [path for path, cfg in read.items() if not is_distilled(cfg)]
    recipes: dict[Path, list[Path]] = {}
    for path, cfg in read.items():
        if 'max_iters' not in cfg.train_cfg:
            raise UsageError(f'{path} counts epochs; these tables count iterations')
        if path not in plain:
            ends = [student for student in plain if path.stem.endswith(f'_{student.stem}')]
            if not ends:
                raise UsageError(f'{path}: no plain config is the end of its name')
            recipes.setdefault(max(ends, key=lambda end: len(end.stem)), []).append(path)
    return recipes


def _table(data: Data, student: Path, members: dict[Path, Config], configs: Path) -> Table:
    """The table of a student and its recipes."""
    taught = {path: _teacher(cfg.model, configs) for path, cfg in members.items()}
    every = {teacher for teacher in taught.values() if teacher}
    if len(every) > 1:
        raise UsageError(f'{student.stem} has several teachers: {sorted(map(str, every))}')
    teacher = next(iter(every), None)
    names = Counter(map(method_of, members))
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        raise UsageError(f'{student.stem} has several recipes called {", ".join(twice)}')
    cached = {
        f'{method_of(path)}-{name}': (path, options)
        for name, options in data.caches.items()
        for path, cfg in members.items()
        if len(trained_teachers(cfg.model)) == 1
    }
    paths = {method_of(path): path for path in members}
    paths |= {name: path for name, (path, _) in cached.items()}
    alone = read_config(str(student))
    iterations = {name: members[path].train_cfg.max_iters for name, path in paths.items()}
    iterations['student'] = alone.train_cfg.max_iters
    if teacher:
        iterations['teacher'] = read_config(str(teacher)).train_cfg.max_iters
    few = {name: path for name, path in paths.items() if _has_unlabelled(members[path])}
    return Table(
        data,
        TASKS[alone.default_scope],
        student,
        teacher,
        recipes={name: path for name, path in paths.items() if name not in few},
        taught={
            name: len(trained_teachers(members[path].model))
            for name, path in paths.items()
            if taught[path]
        },
        iterations=iterations,
        few=few,
        bring={method_of(path): _bring(cfg.model) for path, cfg in members.items()},
        cached={name: options for name, (_, options) in cached.items()},
    )


def _has_unlabelled(cfg: Config) -> bool:
    """Whether a recipe learns from images without labels."""
    return cfg.model.get('unlabelled') is not None


def method_of(recipe: Path) -> str:
    """The method that a recipe has in its name."""
    return recipe.stem.partition('_')[0]


def shipped(data: str) -> bool:
    """Whether recipes ship with what the runs of a data set found."""
    return all(one.augment is None for one in DATA if one.name == data)


def trained_teachers(model: dict) -> list[dict]:
    """The teachers of a recipe that have a config here, by which they are trained.

    Args:
        model (dict): The ``model`` of its config.
    """
    return [one for one in _teachers(model) if isinstance(one.get('config'), str)]


def lacks(table: Table, method: str) -> str | None:
    """What is missing on this machine for a method, in one line; None if it can run.

    Its teachers that bring their weights are built.
    """
    problems = map(_problem, map(json.dumps, table.bring.get(method, ())))
    return next(filter(None, problems), None)


@cache
def _problem(model: str) -> str | None:
    try:
        MODELS.build(json.loads(model))
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _bring(model: dict) -> list[dict]:
    return [one['config'] for one in _teachers(model) if isinstance(one.get('config'), dict)]


def _teachers(model: dict) -> list[dict]:
    teachers = model.get('teacher') or []
    return [teachers] if isinstance(teachers, dict) else list(teachers)


def _teacher(model: dict, configs: Path) -> Path | None:
    """The config of the trained teacher of a recipe, which it names as ``'mmkd::...'``."""
    every = {one['config'] for one in trained_teachers(model)}
    if len(every) > 1:
        raise UsageError(f'the trained teachers of a recipe have one config, not {len(every)}')
    return (configs / every.pop().removeprefix('mmkd::')).resolve() if every else None
