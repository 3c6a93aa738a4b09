"""The common parts of the command-line tools."""

from __future__ import annotations

import argparse
import hashlib
import inspect
import itertools
import math
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmkd_plugin.__main__ import as_typed
from mmkd_plugin.building import check_keys
from mmkd_plugin.cache.wiring import unwire
from mmkd_plugin.checkpoint import nearest_names
from mmkd_plugin.foreign import is_ours
from mmkd_plugin.libraries import PACKAGES, import_reason, scope_problem
from mmkd_plugin.registry import METRICS
from mmkd_plugin.runner_errors import runner_errors_named
from mmkd_plugin.stack import prepare, shipped_config
from mmkd_plugin.teachers.configs import teacher_configs
from mmkd_plugin.words import as_written, did_you_mean, first_line, short, some, type_name


class UsageError(Exception):
    """A mistake in the user's input; the tools print it as one line."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Ends the program with one line instead of a traceback, if an error is meant for the user.

    Such errors are :class:`UsageError`, and the ``ValueError``, ``OSError`` and
    ``FloatingPointError`` of this package. A warning of OpenMMLab's libraries is written once, not
    for each model that is built.

    Raises:
        SystemExit: With the message of such an error. Other errors pass.
    """
    try:
        with _warned_once():
            yield
    except UsageError as error:
        message = str(error)
    except (FloatingPointError, OSError, ValueError) as error:
        if not is_ours(error):
            raise
        message = str(error)
    else:
        return
    if _is_told(message):
        raise SystemExit(1)
    raise SystemExit(f'{Path(sys.argv[0]).name}: error: {as_typed(message)}')


@contextmanager
def _warned_once() -> Iterator[None]:
    """Leaves out warnings of OpenMMLab's libraries that were shown before.

    Python's own filters forget what was shown whenever some library changes a filter.
    """
    show, said = warnings.showwarning, set()

    def show_once(message: Warning | str, category: type, filename: str, *args: Any) -> None:
        theirs = not {*Path(filename).parts}.isdisjoint(PACKAGES)
        if not theirs or (str(message), category) not in said:
            said.add((str(message), category))
            show(message, category, filename, *args)

    warnings.showwarning = show_once
    try:
        yield
    finally:
        warnings.showwarning = show


def _is_told(message: str) -> bool:
    """Whether another process of a distributed run has printed a message already."""
    if not dist.is_available() or not dist.is_initialized():
        return False
    try:
        store = dist.distributed_c10d._get_default_store()
        return store.add(hashlib.sha256(message.encode()).hexdigest(), 1) > 1
    except (AttributeError, RuntimeError):  # the process that keeps it has gone
        return False


class Settings(DictAction):
    """Reads ``KEY=VALUE`` pairs, and says in one line which of them is none.

    The spaces in a name of a file stay; mmengine removes them.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        for text in values:
            key, equals, value = text.partition('=')
            if not equals or not all(key.split('.')):
                raise UsageError(
                    f'{option_string} takes KEY=VALUE, such as model.key=1, not {text}'
                )
            if re.search(r'^[\[( ]*{|(^|[\[(, ])dict\(', value):
                each = '' if value.strip()[0] in '[(' else f'set {key}.type=NAME and so on, or '
                raise UsageError(
                    f'{option_string} {key} takes numbers, words and lists of these, no dict: '
                    f'{each}write it into a config file'
                )
            try:
                super().__call__(parser, namespace, [text], option_string)
            except (AssertionError, SyntaxError, ValueError) as error:
                raise UsageError(f'{option_string} {key}: cannot read {value} ({error})') from error
            if isinstance(getattr(namespace, self.dest)[key], str):
                getattr(namespace, self.dest)[key] = value.strip().strip('\'"')


def progress_bar(console: Console | None = None) -> Progress:
    """A bar that counts and says how much time is left; none where the output is no terminal.

    Args:
        console (Console, optional): Where it is drawn. Defaults to standard output.

    Examples:
        >>> with progress_bar() as progress:
        ...     [n for n in progress.track([1, 2, 3], description='images')]
        [1, 2, 3]
    """
    console = console or Console()
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn('left'),
        console=console,
        disable=not console.is_terminal,
    )


@contextmanager
def stages(count: int, console: Console | None = None) -> Iterator[Callable[[str], None]]:
    """A :func:`progress_bar` over the stages of a tool, for work that cannot be counted.

    Args:
        count (int): How many stages there are.
        console (Console, optional): Where it is drawn. Defaults to standard error.

    Yields:
        Callable[[str], None]: Begins the next stage, given what the tool does in it.

    Examples:
        >>> with stages(2) as begin:
        ...     begin('reading the weights')
        ...     begin('building the model')
    """
    with progress_bar(console or Console(stderr=True)) as progress:
        bar, begun = progress.add_task('', total=count), itertools.count()
        yield lambda name: progress.update(bar, description=name, completed=next(begun))
        progress.update(bar, completed=count)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--cfg-options``, as OpenMMLab's tools have it."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Settings,
        metavar='KEY=VALUE',
        help='change settings of the config: key.sub=1 list="[a,b]" (no white space inside)',
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that our tools for training and testing share with OpenMMLab's."""
    parser.add_argument(
        '--work-dir',
        help='folder of logs and checkpoints; default: the `work_dir` of the config, else '
        './work_dirs/<name of the config>',
    )
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='launcher that started the processes of a distributed run',
    )
    # Launchers of torch 1 and of torch 2 spell it differently.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def apply_options(cfg: Config, options: dict[str, Any] | None) -> None:
    """Changes a config as ``--cfg-options`` says.

    Args:
        cfg (Config): The config, changed in place.
        options (dict, optional): Values by dotted keys, or None.

    Raises:
        UsageError: If a key leads through something that has no keys.
    """
    for key, value in (options or {}).items():
        try:
            cfg.merge_from_dict({key: value})
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            reason = ' '.join(str(error.args[0] if error.args else error).split())
            raise UsageError(f'--cfg-options: `{key}` cannot be set: {reason}') from error


def check_folder(path: str | Path, key: str) -> None:
    """Refuses a folder in which nothing can be written; it is not made here.

    Args:
        path (str | Path): The folder, which need not exist yet.
        key (str): What the message calls it, such as ``'--work-dir'``.

    Raises:
        UsageError: If it is a file or lies in one, or is read-only.
    """
    if not str(path):
        raise UsageError(f'{key} is empty; it takes a folder')
    folder = Path(path).absolute()
    while not folder.exists() and folder != folder.parent:
        if folder.is_symlink():
            raise UsageError(f'{key} {path}: {folder} is a link that leads nowhere')
        folder = folder.parent
    if not folder.is_dir():
        raise UsageError(f'{key} {path}: {folder} is a file; a folder is needed')
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f'{key} {path}: cannot write in {folder}: {error.strerror}') from error


def check_file(path: str | Path, key: str) -> None:
    """Refuses a file that cannot be written; an older one will be replaced.

    Args:
        path (str | Path): The file.
        key (str): What the message calls it, such as ``'--out'``.

    Raises:
        UsageError: If it is a folder, or its folder cannot be written.
    """
    if Path(path).is_dir():
        raise UsageError(f'{key} {path} is a folder; a file is needed')
    check_folder(Path(path).absolute().parent, key)


def check_number(value: float | None, key: str, low: float, high: float = math.inf) -> None:
    """Refuses a number beyond its limits, or none.

    Args:
        value (float, optional): The number; None is always accepted.
        key (str): What the message calls it, such as ``'--workers'``.
        low (float): The smallest.
        high (float): The largest. Defaults to infinity.

    Raises:
        UsageError: If it is beyond, or NaN.
    """
    if value is None or (low <= value <= high and value != math.inf):
        return
    limits = f'at least {low:g}' if high == math.inf else f'from {low:g} to {high:g}'
    raise UsageError(f'{key} must be {limits}, not {value:g}')


def check_has(cfg: Config, name: str, *keys: str) -> None:
    """Refuses a config that lacks what a tool needs.

    Args:
        cfg (Config): The config.
        name (str): What the message calls it.
        *keys (str): What it needs at its top.

    Raises:
        UsageError: If a key is missing or None.
    """
    missing = [key for key in keys if cfg.get(key) is None]
    if missing:
        raise UsageError(f'{name} has no `{"`, no `".join(missing)}`, which this tool needs')


#: What each launcher sets for the processes that it starts.
_LAUNCHED = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'),
    'mpi': ('OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_COMM_WORLD_SIZE'),
}


#: Where each launcher says the number of a process.
_RANK = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}


def is_first_process(launcher: str) -> bool:
    """Whether this is the first process of a run, asked before the processes know each other.

    Args:
        launcher (str): What started them, ``'none'`` for a single process.
    """
    return int(os.environ.get(_RANK.get(launcher, ''), 0)) == 0


def check_launched(launcher: str) -> None:
    """Refuses a launcher that did not start this process.

    Args:
        launcher (str): What started it, ``'none'`` for a single process.

    Raises:
        UsageError: If what this launcher sets is not set, or no accelerator is there: mmengine
            gives one to each process, whatever the backend.
    """
    missing = [name for name in _LAUNCHED.get(launcher, ()) if name not in os.environ]
    if missing:
        raise UsageError(
            f'--launcher {launcher}, but no such launcher started this process ({missing[0]} is '
            'not set): use tools/dist_train.sh or tools/slurm_train.sh, or leave it out'
        )
    if launcher != 'none' and get_device() in ('cpu', 'mps'):
        raise UsageError(
            f'--launcher {launcher} gives each process an accelerator, and there is none: start '
            'one process, without it'
        )


def load_config(args: argparse.Namespace) -> Config:
    """Reads the config that the arguments name, and applies their settings.

    Args:
        args (argparse.Namespace): ``config``, and the arguments of :func:`add_run_arguments`.

    Returns:
        Config: The config with ``launcher`` and ``work_dir`` set.

    Raises:
        UsageError: If there is no such config, see :func:`read_config`, its library cannot be
            imported, or an argument cannot be used.
    """
    check_launched(args.launcher)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.work_dir is not None:
        check_folder(args.work_dir, '--work-dir')
    cfg = read_config(args.config)
    apply_options(cfg, args.cfg_options)
    check_scope(cfg)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('./work_dirs', Path(cfg.filename).stem))
    if not isinstance(cfg.work_dir, str) or not cfg.work_dir.strip():
        raise UsageError(f'work_dir must be the name of a folder, got {short(cfg.work_dir)}')
    check_folder(cfg.work_dir, '--work-dir' if args.work_dir is not None else 'work_dir')
    return cfg


def read_config(name: str, imports: bool = True) -> Config:
    """Reads a config of the user or of an installed OpenMMLab library.

    Args:
        name (str): A path, or ``package::path`` for a config of a library.
        imports (bool): Whether its ``custom_imports`` are imported. Defaults to True.

    Returns:
        Config: The config.

    Raises:
        UsageError: If the config, or a config in its ``_base_``, does not exist. The message names
            similar files.
        FileNotFoundError: If no such library is installed.
    """
    prepare()
    path = shipped_config(name) if '::' in name else Path(name)
    if not path.is_file():
        raise UsageError(f'no config at {name}{nearest_names(path, [".py"])}')
    if path.suffix not in ('.py', '.json', '.yaml', '.yml'):
        raise UsageError(f'{name} is no config: it must end with .py, .json, .yaml or .yml')
    try:
        cfg = Config.fromfile(path, import_custom_modules=imports)
    except FileNotFoundError as error:
        raise UsageError(f'{name} builds on a config that does not exist: {error}') from error
    except ImportError as error:
        raise UsageError(f'{name} cannot be read: {import_reason(error)}') from error
    except Exception as error:  # a config is a program
        raise UsageError(f'{name} cannot be read: {_why_unread(error)}') from error
    for value in cfg.values():
        _write_types(value)
    check_has(cfg, name, 'model')
    return cfg


def _why_unread(error: Exception) -> str:
    """What a config failed with, and the remedy of usual mistakes with ``_base_``."""
    if 'Duplicate key is not allowed among bases' in str(error):
        keys = re.findall(r"'(\w+)'", str(error).partition('Duplicate keys:')[2])
        return (
            f'several files of its `_base_` have the keys {some(sorted(keys))}; keep one of these '
            'files there, and write what the others have into the config itself'
        )
    if isinstance(error, TypeError) and 'unhashable' in str(error):
        return f"{first_line(error)}; if it has '{{{{_base_}}}}', write {{{{_base_.model}}}}"
    return first_line(error)


def _write_types(value: Any) -> None:
    """Puts text in place of each class under a ``type``, in place.

    A pure-Python config has classes there. mmengine writes such a config as text only as long as
    nobody has rebuilt its dicts.
    """
    if isinstance(value, dict):
        for key, inner in list(dict.items(value)):  # which leaves objects of mmengine as they are
            if key == 'type' and isinstance(inner, (LazyAttr, LazyObject)):
                value[key] = f'{inner.module}.{inner}'
            else:
                _write_types(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _write_types(inner)


def check_scope(cfg: Config) -> None:
    """Refuses a config whose library cannot be imported. This imports it, but not its models.

    Args:
        cfg (Config): A config with or without ``default_scope``.

    Raises:
        UsageError: If the library is not installed, or cannot be imported.
    """
    if problem := scope_problem(cfg):
        raise UsageError(problem)


def use_scope(cfg: Config) -> None:
    """Makes the library of a config the one whose names are meant, see :func:`check_scope`."""
    check_scope(cfg)
    init_default_scope(cfg.get('default_scope') or 'mmengine')


def build_runner(cfg: Config) -> Runner:
    """Builds the runner of a config.

    Args:
        cfg (Config): A config of training or testing.

    Raises:
        UsageError: If some keys of validation or test are there and others are not.
        ValueError: If a part cannot be built; the message begins with its key.
    """
    check_evaluations(cfg)
    with runner_errors_named(cfg):
        return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


#: What belongs together: the keys of validation, and those of a test.
_EVALUATION = ('dataloader', 'cfg', 'evaluator')


def check_evaluations(cfg: Config) -> None:
    """Refuses a config that has some of the three keys of validation, or of a test, alone.

    Args:
        cfg (Config): A config of training or testing.

    Raises:
        UsageError: If one is missing, or is None, and another is there.
    """
    for which in ('val', 'test'):
        keys = [f'{which}_{one}' for one in _EVALUATION]
        there = [key for key in keys if cfg.get(key) is not None]
        missing = [key for key in keys if key not in there]
        if there and missing:
            raise UsageError(
                f'{" and ".join(there)} {_are(there)} there, {" and ".join(missing)} '
                f'{_are(missing)} missing: write all three, or none of them '
                f'({", ".join(f"{key}=None" for key in there)})'
            )


def _are(names: Sequence[str]) -> str:
    return 'is' if len(names) == 1 else 'are'


def is_distilled(cfg: Config) -> bool:
    """Whether the model of a config is a Distiller.

    Args:
        cfg (Config): A config with ``model``.
    """
    return type_name(cfg.model.get('type')) == 'Distiller' and 'student' in cfg.model


def use_student(cfg: Config) -> None:
    """Turns a distilled config into that of its student, in place; other configs stay.

    A data preprocessor at the top of the config moves into the model, because the runner alone
    looks for it at the top. The config gets a name of its own, ``<name>_student.py``: a runner
    saves it in the work dir, where the config that distils may lie.

    Args:
        cfg (Config): The config of a run.
    """
    if not is_distilled(cfg):
        return
    if cfg.filename is not None:
        file = Path(cfg.filename)
        object.__setattr__(cfg, '_filename', str(file.with_name(f'{file.stem}_student.py')))
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor')
    unwire(cfg)
    cfg.model = cfg.model.student
    if preprocessor is not None:
        cfg.model.setdefault('data_preprocessor', preprocessor)
    hooks = cfg.get('custom_hooks')
    if hooks:
        cfg.custom_hooks = [hook for hook in hooks if not is_own(hook)]
    print_log('The config distils: using its student alone.', logger='current')


def metrics_of(cfg: Config, key: str = 'test') -> list:
    """The configs of the metrics of a test, or of a validation.

    Args:
        cfg (Config): A config whose ``test_evaluator`` is one metric, a list of metrics or None.
        key (str): ``'test'`` or ``'val'``. Defaults to ``'test'``.
    """
    metrics = cfg.get(f'{key}_evaluator')
    metrics = metrics if isinstance(metrics, (list, tuple)) else [metrics]
    return [metric for metric in metrics if metric is not None]


def complete_metrics(cfg: Config, distilled: ConfigDict | None, key: str = 'test') -> None:
    """Completes this package's metrics of a test or a validation from the config, in place.

    A metric without a teacher gets the teacher of the Distiller, and a hook hands the metrics the
    tested model.

    Args:
        cfg (Config): A config with the evaluator.
        distilled (ConfigDict, optional): The Distiller that the config trains, or None.
        key (str): ``'test'`` or ``'val'``. Defaults to ``'test'``.

    Raises:
        UsageError: If a metric or one of its keys does not exist, or a metric has no clear teacher.
    """
    own = [metric for metric in metrics_of(cfg, key) if is_own(metric)]
    for metric in own:
        kind = METRICS.get(metric.type) if isinstance(metric.type, str) else metric.type
        if kind is None:
            known = METRICS.module_dict
            hint = did_you_mean(metric.type.partition('.')[2], known, 'mmkd_plugin.{}')
            raise UsageError(f'there is no metric {metric.type}{hint} (known: {", ".join(known)})')
        keys = inspect.signature(kind).parameters
        check_keys(f'the metric {as_written(metric.type)}', metric, ('type', *keys))
        if 'teacher' in keys and not isinstance(metric.get('teacher'), dict):
            metric.teacher = _teacher_of(distilled, metric)
        if kind.__name__ == 'ExplanationLocalization':
            _check_boxes_are_as_loaded(cfg, key)
    hooks = cfg.get('custom_hooks') or []
    there = any(is_own(hook) and type_name(hook.type) == 'ModelForMetrics' for hook in hooks)
    if own and not there:
        cfg.custom_hooks = [*hooks, dict(type='mmkd_plugin.ModelForMetrics')]


def _check_boxes_are_as_loaded(cfg: Config, key: str) -> None:
    """Refuses boxes that are resized with the image: predictions have the original size."""
    dataset = cfg[f'{key}_dataloader'].dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    types = [step.type for step in dataset.get('pipeline') or []]
    steps = [type_name(kind) for kind in types]
    if cfg.get('default_scope') == 'mmdet' and 'LoadAnnotations' in steps:
        after = types[steps.index('LoadAnnotations') :]
        resized = [as_written(kind) for kind in after if 'Resize' in type_name(kind)]
        if resized:
            raise UsageError(
                'mmkd_plugin.ExplanationLocalization needs boxes in pixels of the original image: '
                f'in the pipeline of the {key} data, LoadAnnotations belongs behind {resized[-1]}, '
                'as in the stock configs'
            )


def _teacher_of(distilled: ConfigDict | None, metric: ConfigDict) -> dict:
    """The trained teacher of a distilled config: its only one, or the one that a metric names."""
    name = metric.get('teacher')
    if distilled is None:
        raise UsageError(
            f"{as_written(metric.type)} needs a teacher: teacher=dict(config='...', "
            "checkpoint='...'), or a config that distils"
        )
    every = {n: c for n, c in teacher_configs(distilled.teacher).items() if 'type' not in c}
    if name is None and len(every) == 1:
        (name,) = every
    if name in every:
        return every[name]
    example = "teacher=dict(config='...', checkpoint='...')"
    if every:
        example = f'teacher={next(iter(every))!r} (there are {", ".join(every)})'
    raise UsageError(
        f'{as_written(metric.type)} needs one teacher that is trained and can run alone: {example}'
    )


def is_own(config: ConfigDict | Any) -> bool:
    """Whether a config names a hook or a metric of this package.

    Args:
        config (ConfigDict | Any): The config of a hook or a metric.
    """
    kind = config.get('type') if isinstance(config, dict) else None
    return str(getattr(kind, '__module__', kind)).startswith('mmkd_plugin.')
