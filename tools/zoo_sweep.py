"""Try every config of mmsegmentation and mmdetection as a student, and write what came out.

Each model is shrunken, trained for a step alone, distilled for a step with tools/distill.py, asked
for a prediction, and its checkpoint is loaded into the stock model. ``make zoo`` runs this; run it
again after an interruption, and it goes on.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import ModuleType

os.environ.setdefault('OMP_NUM_THREADS', '1')  # each process has one thread

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

import torch
from mmengine.registry import MODELS

from benchmarks.zoo import configs, page, records
from benchmarks.zoo.attempt import FAILS, NOT_OURS, SIBLING, TEACHERS, TRAINS, WORKS, Outcome
from benchmarks.zoo.processes import Limits, attempts
from mmkd_plugin.cli import UsageError, check_file, check_folder, check_number, plain_errors
from mmkd_plugin.stack import prepare

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks' / 'results' / 'zoo.jsonl'
PAGE = ROOT / 'docs' / 'zoo.md'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--report', action='store_true', help='write the page from what is there, and try nothing'
    )
    parser.add_argument(
        '--only',
        nargs='+',
        default=[],
        metavar='CONFIG',
        help='configs to try, such as "mmseg::fcn/*"; default: all',
    )
    parser.add_argument(
        '--per-family', type=int, metavar='N', help='at most N different models of each folder'
    )
    parser.add_argument(
        '--sibling',
        action='store_true',
        help='the teacher is the same model with twice the channels, not one for all',
    )
    parser.add_argument(
        '--again',
        nargs='+',
        choices=[WORKS, TRAINS, FAILS, NOT_OURS],
        default=[],
        metavar='OUTCOME',
        help='try those again that came out so: works, trains, fails, "not ours"',
    )
    parser.add_argument('--jobs', type=int, default=1, help='processes at a time; default: 1')
    parser.add_argument('--seconds', type=float, default=120, help='limit of each; default: 120')
    parser.add_argument(
        '--megabytes', type=float, default=6000, help='memory limit of each; default: 6000'
    )
    parser.add_argument('--results', type=Path, default=RESULTS, help='file of the outcomes')
    parser.add_argument(
        '--logs', type=Path, default=Path('work_dirs/zoo'), help='folder for what they print'
    )
    return parser.parse_args()


def main() -> None:
    with plain_errors():
        args = parse_args()
        for key, low in dict(per_family=1, jobs=1, seconds=1, megabytes=100).items():
            check_number(getattr(args, key), f'--{key.replace("_", "-")}', low)
        check_file(args.results, '--results')
        check_folder(args.logs, '--logs')
        if args.report:
            write_page(args)
            return
        names = configs.names(args.only)
        if not names:
            raise UsageError(f'--only {" ".join(args.only)} names no config')
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends what it has started
        Sweep(args, names).run()
        write_page(args)


class Sweep:
    """The attempts, and what is known of them.

    Args:
        args (argparse.Namespace): Those of the command line.
        names (Sequence[str]): The configs.
    """

    def __init__(self, args: argparse.Namespace, names: Sequence[str]) -> None:
        self.args, self.names = args, names
        self.done = records.read(args.results)
        self.groups: dict[tuple[str, str], list[configs.Candidate]] = {}
        self.count, self.spent = 0, 0.0

    def run(self) -> None:
        """Tries what is left."""
        torch.set_num_threads(1)
        prepare()
        import_all()
        say(f'reading configs, {len(self.names)} of them at most')
        found = configs.candidates(self.names, self.args.per_family, self.known())
        for one in found:
            if not one.model:
                self.keep([one], '', Outcome('no model', '', one.reason), 0.0)
        every = configs.groups(found)
        wanted = [(group, self.teacher(group[0].name)) for group in configs.in_turn(every)]
        todo = [(group, teacher) for group, teacher in wanted if not self.is_done(group, teacher)]
        self.groups = {(group[0].name, teacher): group for group, teacher in todo}
        configs_left = sum(len(group) for group, _ in todo)
        say(
            f'{sum(map(len, every))} segmentors and detectors, {len(every)} different models; '
            f'{len(todo)} to try, for {configs_left} configs'
        )
        gc.freeze()  # else each process goes through all that was imported
        attempts(
            list(self.groups),
            tool('distill'),
            Limits(self.args.seconds, self.args.megabytes),
            self.args.jobs,
            self.args.logs.absolute(),
            self.ended,
        )

    def known(self) -> dict[str, configs.Candidate]:
        """The configs that need not be read again, by name."""
        return {
            one.config: configs.Candidate(one.config, one.model, one.reason)
            for one in self.done.values()
            if one.outcome not in self.args.again
        }

    def teacher(self, config: str) -> str:
        """The teacher of a config."""
        return SIBLING if self.args.sibling else TEACHERS[config.partition('::')[0]]

    def is_done(self, group: Sequence[configs.Candidate], teacher: str) -> bool:
        """Whether all configs of a model have an outcome that is to stay; notes it for all."""
        known = [self.done.get((one.name, teacher)) for one in group]
        outcome = next((one for one in known if one is not None), None)
        if outcome is None or outcome.outcome in self.args.again:
            return False
        if None in known:
            self.keep(group, teacher, _outcome(outcome), outcome.seconds, outcome.tried)
        return True

    def ended(self, config: str, teacher: str, outcome: Outcome, seconds: float) -> None:
        """Keeps an outcome, and tells it."""
        group = self.groups[config, teacher]
        self.keep(group, teacher, outcome, seconds)
        self.count, self.spent = self.count + 1, self.spent + seconds
        left = (len(self.groups) - self.count) * self.spent / self.count / self.args.jobs
        text = outcome.reason or outcome.compared
        say(
            f'[{self.count}/{len(self.groups)}, {left / 60:.0f} min left] {config}: '
            f'{outcome.outcome}, {seconds:.0f} s, {outcome.rung}: {text}'
        )

    def keep(
        self,
        group: Sequence[configs.Candidate],
        teacher: str,
        outcome: Outcome,
        seconds: float,
        tried: str | None = None,
    ) -> None:
        """Notes an outcome for all configs of a model."""
        for one in group:
            self.done[one.name, teacher] = records.Record(
                config=one.name,
                teacher=teacher,
                outcome=outcome.outcome,
                stage=outcome.stage,
                reason=outcome.reason,
                rung=outcome.rung,
                compared=outcome.compared,
                seconds=round(seconds, 1),
                model=one.model,
                tried=tried or group[0].name,
            )
        records.write(self.args.results, list(self.done.values()))


def _outcome(record: records.Record) -> Outcome:
    return Outcome(record.outcome, record.stage, record.reason, record.rung, record.compared)


def import_all() -> None:
    """Imports once, before processes are forked, what each of them needs."""
    for name in ('mmseg.models', 'mmkd_plugin.registry', 'torch._dynamo'):  # the last by optimizers
        importlib.import_module(name)
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    MODELS.get('mmkd_plugin.Distiller')


def tool(name: str) -> ModuleType:
    """Imports another tool."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f'{name}.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def say(text: str) -> None:
    print(f'[{datetime.now():%H:%M:%S}] {text}', flush=True)


def write_page(args: argparse.Namespace) -> None:
    """Writes docs/zoo.md, or a page beside other results."""
    path = PAGE if args.results == RESULTS else args.results.with_suffix('.md')
    page.write(list(records.read(args.results).values()), len(configs.names()), path)
    say(f'written: {path}')


if __name__ == '__main__':
    main()
