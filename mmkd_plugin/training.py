"""Training: a run from its config to its checkpoints, as the tools start it."""

from __future__ import annotations

import argparse
import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.config.config import BASE_KEY
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, save_checkpoint

from mmkd_plugin.base_variables import warn_of_base_variables
from mmkd_plugin.cache.wiring import wire
from mmkd_plugin.checkpoint import CheckpointError, read_checkpoint, read_data
from mmkd_plugin.cli import (
    UsageError,
    add_run_arguments,
    build_runner,
    check_has,
    complete_metrics,
    is_distilled,
    is_first_process,
    read_config,
)
from mmkd_plugin.cores import Cores, free_cores, threads_for
from mmkd_plugin.foreign import frames_of, is_ours
from mmkd_plugin.health import NotFiniteError
from mmkd_plugin.migrating import refuse_theirs
from mmkd_plugin.old_keys import warn_of_old
from mmkd_plugin.paraphrasing import FILE_NAME, has_teacher_connector, stage_config, usual_file
from mmkd_plugin.report import ReportHook
from mmkd_plugin.run_config import (
    check_run,
    pretrained_files,
    warn_of_custom_keys,
    warn_of_unknown,
)
from mmkd_plugin.runner_errors import runner_errors_named
from mmkd_plugin.running.hook import make_resumable
from mmkd_plugin.running.locking import alone_in
from mmkd_plugin.running.not_finite import (
    Step,
    bad_weights,
    first_not_finite,
    plain_losses,
    steps_kept,
)
from mmkd_plugin.running.resuming import (
    Found,
    check_run_state,
    check_unfinished,
    newest_checkpoint,
    point_to,
    use_seed,
)
from mmkd_plugin.running.schedules import CheckSchedules
from mmkd_plugin.saving import replacing
from mmkd_plugin.teachers.classes import (
    classes_of_config,
    classes_of_the_student,
    reduces_zero_label,
)
from mmkd_plugin.training_data import warn_of_kept_state, watch_data
from mmkd_plugin.unlabelled.pipelines import complete
from mmkd_plugin.words import first_line, some, type_name

WITHOUT_AMP = ('cpu', 'mps')
"""Devices on which mmengine does not train in mixed precision."""

OF_AMP = ('dtype', 'loss_scale', 'use_fsdp')
"""Arguments of ``AmpOptimWrapper`` that ``OptimWrapper`` does not have."""

TOO_SMALL = 'Expected more than 1 value per channel when training, got input size'
"""What torch says of a batch norm that gets a single value per channel."""


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that all tools which train take."""
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the batch size, from the `auto_scale_lr` of the config',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint; without a value, from the newest in the work dir that is '
        'whole, or from the start if there is none yet',
    )
    parser.add_argument(
        '--allow-changes',
        action='store_true',
        help='with --resume: go on although the config, the data or a teacher is not that of the '
        'checkpoint',
    )
    add_run_arguments(parser)


def train(cfg: Config, args: argparse.Namespace, start: Cores, paraphraser: bool = False) -> None:
    """Trains what a config says.

    Args:
        cfg (Config): As :func:`mmkd_plugin.cli.load_config` gives it; changed in place.
        args (argparse.Namespace): The arguments of :func:`add_training_arguments`, and ``config``.
        start (Cores): The processor cores at the start of the program.
        paraphraser (bool): Whether the teacher connectors are trained, and not the student.
            Defaults to False.

    Raises:
        UsageError: If the config or an argument cannot be used.
    """
    check_has(cfg, args.config, 'train_dataloader', 'train_cfg', 'optim_wrapper')
    if args.allow_changes and args.resume is None and not cfg.get('resume'):
        raise UsageError('--allow-changes is for a run that goes on; add --resume')
    refuse_theirs(cfg, args.config)
    check_run(cfg)
    if args.amp:
        use_amp(cfg)
    check_amp(cfg)
    if args.auto_scale_lr:
        use_auto_scale_lr(cfg)
    saved = find_paraphraser(cfg, paraphraser)
    keep_config(cfg)
    with work_dir_of_our_own(cfg):
        find_start(cfg, args.resume)
        complete(cfg)
        complete_metrics(cfg, cfg.model if is_distilled(cfg) else None, 'val')
        wire(cfg)
        with plain_disk_errors():
            with classes_of_the_student(classes_of_config(cfg), reduces_zero_label(cfg)):
                try:
                    runner = build_runner(cfg)
                finally:
                    warn_of_unknown(cfg)  # below the config, which the runner prints
                    warn_of_old(cfg, args.cfg_options or ())
                    warn_of_base_variables(cfg, args.cfg_options or ())
            names = [name for name, _ in runner.model.named_parameters()]
            warn_of_custom_keys(cfg.optim_wrapper, names)
            warn_of_busy_cores(start, Cores.now())
            watch_data(runner)
            if cfg.get('resume'):
                warn_of_kept_state(runner._train_dataloader.dataset)
            make_resumable(runner, args.allow_changes)
            runner.register_hook(CheckSchedules())
            report_on(runner)
            with (
                lost_process_named(),
                small_batch_named(cfg),
                runner_errors_named(cfg),
                file_named(cfg.get('load_from'), bool(cfg.get('resume'))),
                steps_kept(runner),
            ):
                runner.train()
            if paraphraser:
                save_paraphraser(runner, saved)


def replay(folder: str) -> None:
    """Runs a step again whose loss was not finite, and says what went wrong first.

    Args:
        folder (str): Folder of the step: ``nan_<iteration>`` in a work dir; or the file in it of
            one process of several.

    Raises:
        CheckpointError: If there is no step, or the model or a teacher is another one.
        UsageError: If the loss is another one now.
    """
    step = Step(folder)
    cfg = read_config(str(step.config))
    cfg.work_dir, cfg.launcher = str(step.folder / 'replay'), 'none'
    cfg.resume, cfg.load_from = False, None
    with classes_of_the_student(classes_of_config(cfg), reduces_zero_label(cfg)):
        runner = build_runner(cfg)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    step.put_into(runner)
    outcome = step.run(runner)
    culprit = step.content['culprit']
    failed = isinstance(outcome, NotFiniteError)
    losses = plain_losses(outcome.losses if failed else outcome)
    was, now = (one[culprit].sum().item() for one in (step.content['losses'], losses))
    if not failed:
        raise UsageError(
            f'--replay {folder}: {culprit} is {now:.6g} here, and was {was:.6g}. The step ran on '
            f'{step.content["device"]} in {step.content["processes"]} process(es): run it again '
            'there, with the same versions'
        )
    step.put_into(runner)
    models = {'the student': runner.model.student}
    for name, teacher in runner.model.teachers.items():
        if teacher.predictor() is not None:
            models[f"teacher '{name}'"] = teacher.predictor()
    with first_not_finite(models) as first:
        step.run(runner)
    print(f'{culprit} was {was:.6g}, and is {now:.6g} now')
    print('All losses are the same, bit for bit.' if step.same(outcome) else 'Other losses differ.')
    print(*outcome.findings, sep='\n')
    weights = bad_weights(models)
    if weights:
        print(f'Weights are not finite already: {some(weights, 5)}')
    term = next((one.name for one in outcome.findings if not one.finite), culprit)
    print(f'First: {first[0] if first else f"{term}; the modules before it give finite values"}')


@contextmanager
def lost_process_named() -> Iterator[None]:
    """Say in plain words that another process of a run has ended, and what to do."""
    try:
        yield
    except RuntimeError as error:
        kinds = getattr(torch.distributed, 'DistError', ())  # of torch 2.2 and later
        if is_ours(error) or not (isinstance(error, kinds) or 'gloo/transport' in str(error)):
            raise
        raise ConnectionError(
            'another process of this run has ended or cannot be reached. What it says of it stands '
            'above; one that the system has killed says nothing, and then its memory was full '
            'more often than not. Go on with --resume in all processes '
            f'({type(error).__name__}: {first_line(error)})'
        ) from error


@contextmanager
def small_batch_named(cfg: Config) -> Iterator[None]:
    """Say which batches are too small for the batch norms of a model."""
    try:
        yield
    except ValueError as error:
        _, found, size = str(error).partition(TOO_SMALL)
        if not found:
            raise
        count = cfg.train_dataloader.get('batch_size', 1)
        rest = '' if count == 1 else ', whose last batch of an epoch may have one image'
        raise UsageError(
            f'train_dataloader.batch_size={count}{rest}: a batch norm got one value per channel, '
            f'{size.strip()}, and needs more to train. '
            + ('Take 2 or more' if count == 1 else 'Add train_dataloader.drop_last=True')
        ) from error


@contextmanager
def file_named(path: str | None, resumed: bool = False) -> Iterator[None]:
    """Name the file that weights, or the state of a run, come from where only these are known."""
    try:
        yield
    except CheckpointError as error:
        if path is None or str(path) in str(error):
            raise
        raise CheckpointError(f'{path}: {error}') from error
    except Exception as error:
        if path is None or is_ours(error):
            raise
        frames = list(frames_of(error))
        names = {frame.f_code.co_name for frame in frames}
        modules = {frame.f_globals.get('__name__', '') for frame in frames}
        if 'load_or_resume' in names:
            raise CheckpointError(f'{path} cannot be loaded: {first_line(error)}') from error
        stepping = 'mmengine.optim.scheduler.param_scheduler' in modules
        if resumed and stepping and 'build_param_scheduler' not in names:
            raise CheckpointError(
                f'{path}: a schedule cannot go on from its state there: {first_line(error)}'
            ) from error
        raise


def warn_of_busy_cores(before: Cores, after: Cores) -> None:
    """Say how many threads would be faster, if other programs use the cores of a run on the CPU."""
    if get_device() != 'cpu' or 'OMP_NUM_THREADS' in os.environ:
        return
    free, threads = free_cores(before, after), torch.get_num_threads()
    fewer = threads_for(free, threads)
    if fewer < threads:
        print_log(
            f'{free:.1f} of {after.count} cores are free for the {threads} threads of this run: '
            f'OMP_NUM_THREADS={fewer} OMP_WAIT_POLICY=PASSIVE before the command makes it faster.',
            logger='current',
            level=logging.WARNING,
        )


def use_amp(cfg: Config) -> None:
    wrapper = optim_wrapper_of(cfg)
    if wrapper == 'AmpOptimWrapper':
        print_log('--amp: the config trains in mixed precision already.', logger='current')
    elif wrapper != 'OptimWrapper':
        raise UsageError(f'--amp works with the optim wrapper `OptimWrapper`, not with `{wrapper}`')
    elif get_device() in WITHOUT_AMP:
        raise UsageError('--amp needs an accelerator, and there is none')
    else:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'


def check_amp(cfg: Config) -> None:
    """Refuse mixed precision where mmengine has none."""
    if optim_wrapper_of(cfg) == 'AmpOptimWrapper' and get_device() in WITHOUT_AMP:
        of_amp = [key for key in OF_AMP if key in cfg.optim_wrapper]
        raise UsageError(
            'optim_wrapper.type=AmpOptimWrapper trains in mixed precision, which needs an '
            'accelerator, and there is none: '
            + (
                f"write type='OptimWrapper' in the config, and leave out {' and '.join(of_amp)}"
                if of_amp
                else '--cfg-options optim_wrapper.type=OptimWrapper'
            )
        )


def optim_wrapper_of(cfg: Config) -> str:
    return type_name(cfg.optim_wrapper.get('type', 'OptimWrapper'))


def use_auto_scale_lr(cfg: Config) -> None:
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise UsageError(
            '--auto-scale-lr needs `auto_scale_lr=dict(base_batch_size=...)` in the config'
        )
    cfg.auto_scale_lr.enable = True


def find_paraphraser(cfg: Config, train_it: bool) -> Path:
    """Return the file of the trained teacher connectors; if asked, make the config train them."""
    path = Path(cfg.work_dir, FILE_NAME)
    lines = (cfg.model.get('distill') or {}) if is_distilled(cfg) else {}
    lines = {name: line for name, line in lines.items() if has_teacher_connector(line)}
    if train_it:
        if not lines:
            raise UsageError('--paraphraser: no term of `distill` has a `teacher_connector`')
        if path.exists():
            raise UsageError(
                f'--paraphraser: there is one at {path} already; move it away, or take another '
                '--work-dir'
            )
        stage_config(cfg, str(path.with_suffix('')))
    else:
        for name, line in lines.items():
            line.teacher_connector.setdefault('checkpoint', usual_file(name, line, cfg.work_dir))
    return path


def keep_config(cfg: Config) -> None:
    """Lets the runner save the whole config under another name than a short one in the work dir.

    Args:
        cfg (Config): The config of the run. If its file lies in the work dir and builds on others,
            the runner is told another name, ``<name>_full.py``.
    """
    file = Path(cfg.filename) if cfg.filename is not None else None
    if file is None or file.resolve().parent != Path(cfg.work_dir).resolve():
        return
    if file.is_file() and BASE_KEY in file.read_text(encoding='utf-8'):
        object.__setattr__(cfg, '_filename', str(file.with_name(f'{file.stem}_full.py')))


def report_on(runner: Runner) -> None:
    """Have a run end with a report, unless its config says otherwise."""
    wanted = runner.cfg.get('report', True)
    if wanted and not any(isinstance(hook, ReportHook) for hook in runner.hooks):
        runner.register_hook(ReportHook())


def save_paraphraser(runner: Runner, path: Path) -> None:
    if is_main_process():
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        with replacing(path) as (beside,):
            save_checkpoint(dict(state_dict=model.paraphrasers.state_dict()), str(beside))
        print_log(f'The paraphraser is at {path}; train the student now.', logger='current')


@contextmanager
def work_dir_of_our_own(cfg: Config) -> Iterator[None]:
    """Refuse a work dir in which another process trains."""
    Path(cfg.work_dir).mkdir(parents=True, exist_ok=True)
    with alone_in(cfg.work_dir) if is_first_process(cfg.launcher) else nullcontext():
        yield


def find_start(cfg: Config, resume: str | None) -> None:
    """Read the checkpoint that the run starts from, to refuse a bad file before anything else.

    Args:
        cfg (Config): The config of the run; ``resume`` and ``load_from`` are set.
        resume (str | None): A checkpoint, ``'auto'`` for the newest one, or None: as the config
            says.
    """
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    found = None
    for place, file in pretrained_files(cfg.model.to_dict()):
        try:
            read_data(file)
        except (OSError, ValueError) as error:
            raise UsageError(f'{place}: {error}') from error
    if resume == 'auto':
        found = resume_latest(cfg)
    elif resume is not None:
        found = Found(resume, read_checkpoint(resume))
    if found is None:
        if cfg.get('load_from') is not None:
            read_checkpoint(cfg.load_from)
    else:
        check_run_state(found.content, found.path)
        check_unfinished(found.content, found.path, cfg.train_cfg)
        use_seed(found.content, cfg)
        cfg.resume, cfg.load_from = True, found.path


def resume_latest(cfg: Config) -> Found | None:
    """Find the newest checkpoint of the work dir, if there is one."""
    out_dir = ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('out_dir')
    others = [Path(out_dir, Path(cfg.work_dir).name)] if out_dir else []
    found = newest_checkpoint(cfg.work_dir, others)
    if found is None:
        print_log(f'--resume: nothing in {cfg.work_dir} yet, starting anew.', logger='current')
        cfg.resume = False
    elif is_first_process(cfg.launcher):
        point_to(found, cfg.work_dir)
    return found


#: Errors of the disk, not of the program.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)


@contextmanager
def plain_disk_errors() -> Iterator[None]:
    """End with one line if a library could not write; what was saved before stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK:
            raise
        where = f': {error.filename}' if error.filename else ''
        raise UsageError(
            f'{error.strerror}{where}. Checkpoints that were saved before are whole: go on with '
            '--resume once it can be written'
        ) from error
