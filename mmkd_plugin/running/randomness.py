"""Random numbers of a run: by the seed and the number of an iteration, so a resumed run has them.

mmengine seeds once. What is drawn later depends on everything that was drawn before: in a process
that loads data, on the images that this process has loaded. Nobody can restore that from a
checkpoint. So each image and each iteration is seeded here, and nothing has to be restored.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader, get_worker_info

from mmkd_plugin.running.remembering import Image, images_to_load, last_images
from mmkd_plugin.seeds import seed_with, seeded

#: Kinds of things that are seeded; no two share random numbers.
IMAGE, ITERATION, EPOCH = range(3)

#: Where `meta` of a checkpoint says how many batches of the epoch were done, and of how many.
DONE = 'mmkd_batches_done'


class SeededBatch(list):
    """Indices of the images of a batch. Going through them seeds before each image.

    Args:
        indices (Iterable[int]): The indices.
        key (tuple[int, ...]): Key of the batch for :func:`seed_with`.
        before (Sequence[Image]): Images that are loaded first, for transforms that keep images.
            Defaults to ``()``.
        dataset (Dataset, optional): The data set if no other process loads it. Defaults to None.
    """

    def __init__(
        self,
        indices: Iterable[Any],
        key: tuple[int, ...],
        before: Sequence[Image] = (),
        dataset: Any = None,
    ) -> None:
        super().__init__(indices)
        self.key, self.before, self._dataset = key, before, dataset

    def __iter__(self) -> Iterator[Any]:
        for index, key in self.before:
            seed_with(*key, devices=False)
            worker = get_worker_info()
            (self._dataset if worker is None else worker.dataset)[index]
        for position, index in enumerate(super().__iter__()):
            seed_with(*self.key, position, devices=False)
            yield index

    def images(self) -> list[Image]:
        """The images, as another batch may load them before."""
        return [(index, (*self.key, n)) for n, index in enumerate(super().__iter__())]

    def __reduce__(self) -> tuple:
        # Sending a batch to another process must not seed this one.
        return type(self), (list(super().__iter__()), self.key, self.before)


class SeededBatches:
    """A batch sampler whose batches are numbered and seeded.

    Args:
        loader (DataLoader): The loader whose batch sampler they take the place of.
        seed (int): Seed of the run.

    Attributes:
        number (int): Number of the next batch, which is the iteration that it is for.
        skipped (int): How many batches the next pass leaves out.
        before (list[list[Image]]): What the next batches load first.
        kept (int): How many images before a batch its transforms know.
        workers (int): The processes that load data.
        stay (bool): Whether these processes stay from epoch to epoch.
    """

    def __init__(self, loader: DataLoader, seed: int) -> None:
        self._batches, self._key = loader.batch_sampler, (seed, IMAGE, get_rank())
        self._dataset = loader.dataset
        self._beside = getattr(loader.dataset, 'beside', None)  # images without labels
        self.number = self.skipped = 0
        self.before: list[list[Image]] = []
        self.kept = images_to_load(loader.dataset) or 0
        self.workers = max(loader.num_workers, 1)
        self.stay = loader.num_workers == 0 or loader.persistent_workers

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__['_batches'], name)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[SeededBatch]:
        skipped, self.skipped = self.skipped, 0
        for position, batch in enumerate(self._batches):
            self.number += 1
            if position >= skipped:
                one = self.batch(batch, self.number - 1)
                if self.before:
                    one.before = self.before.pop(0)
                yield one

    def batch(self, indices: Sequence[Any], number: int) -> SeededBatch:
        """The batch of some images, with its number."""
        more = self._beside(number) if self._beside is not None else ()
        return SeededBatch([*indices, *more], (*self._key, number), (), self._dataset)

    def skip(self, sampler_skip: Callable[[int], None], samples: int) -> None:
        """Follows a sampler that leaves out images at the start."""
        size = self._batches.batch_size
        self.number = number = samples // size
        count = min(number, self.workers * math.ceil(self.kept / size))
        sampler_skip((number - count) * size)
        numbers = range(number - count, number)
        last = [self.batch(one, n) for n, one in zip(numbers, self._batches if count else ())]
        self.load_before(((one.key[-1], one) for one in reversed(last)), number)
        sampler_skip(samples)

    def load_before(self, history: Iterable[tuple[int, SeededBatch]], position: int) -> None:
        """Has the next batches fill the caches of transforms first.

        Args:
            history (Iterable[tuple[int, SeededBatch]]): The batches until now, the last one first,
                each with its position in the pass over the data.
            position (int): That of the next batch.
        """
        done = ((at % self.workers, one.images()) for at, one in history)
        self.before = last_images(done, self.workers, self.kept, position)
        if count := sum(map(len, self.before)):
            print_log(
                f'--resume: {count} images are loaded again, for transforms that keep images',
                logger='current',
            )

    def order(self, seed: int, epoch: int) -> list[Sequence[Any]]:
        """The indices of all batches of an epoch."""
        sampler = getattr(self._batches, 'sampler', None)
        now = getattr(sampler, 'epoch', None)
        with seeded(seed, EPOCH, epoch):
            if now is not None:
                sampler.set_epoch(epoch)
            order = list(self._batches)
        if now is not None:
            sampler.set_epoch(now)
        return order


def seed_batches(loader: DataLoader, seed: int) -> SeededBatches | None:
    """Makes a data loader seed each image.

    Args:
        loader (DataLoader): The loader, changed in place; nothing was loaded yet.
        seed (int): Seed of the run.

    Returns:
        SeededBatches | None: Its new batch sampler, None for a loader without batches.
    """
    if loader.batch_sampler is None:
        return None
    batches = SeededBatches(loader, seed)
    object.__setattr__(loader, 'batch_sampler', batches)  # a DataLoader refuses a plain one
    skip = getattr(loader.sampler, 'skip', None)
    if skip is not None:
        loader.sampler.skip = partial(batches.skip, skip)
    return batches


class SeedIterations(Hook):
    """Seeds each iteration and each epoch, and goes on within an epoch.

    Args:
        batches (SeededBatches, optional): Batch sampler of the training data. Defaults to None.
    """

    priority = 'HIGHEST'

    def __init__(self, batches: SeededBatches | None = None) -> None:
        self.batches = batches
        self.done, self.resumed = 0, False

    def before_train_epoch(self, runner: Runner) -> None:
        if self.batches is not None and isinstance(runner.train_loop, EpochBasedTrainLoop):
            self.batches.number = runner.iter - self.done
            self.batches.skipped = self.done
            if self.resumed and self.batches.kept:
                self._fill_caches(runner)
            self.resumed = False
        seed_with(runner.seed, EPOCH, runner.epoch)

    def _fill_caches(self, runner: Runner) -> None:
        """Loads again what the processes that load data would have kept."""
        batches, first = self.batches, runner.epoch
        if batches.stay:
            switched = (getattr(hook, 'switch_epoch', 0) for hook in runner.hooks)
            first = max((epoch for epoch in switched if epoch <= first), default=0)
            if self.done % batches.workers:
                print_log(
                    '--resume: within an epoch, processes that load data may change places, so '
                    'transforms that keep images mix in others than in a run that never ended; a '
                    'checkpoint at the end of an epoch is resumed exactly',
                    logger='current',
                    level=logging.WARNING,
                )

        def history() -> Iterator[tuple[int, SeededBatch]]:
            for epoch in range(runner.epoch, first - 1, -1):
                order = batches.order(runner.seed, epoch)
                start = runner.iter - self.done - (runner.epoch - epoch) * len(order)
                for at in reversed(range(self.done if epoch == runner.epoch else len(order))):
                    yield at, batches.batch(order[at], start + at)

        batches.load_before(history(), self.done)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        seed_with(runner.seed, ITERATION, runner.iter)

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        self.done += 1

    def after_train_epoch(self, runner: Runner) -> None:
        self.done = 0

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            checkpoint['meta'][DONE] = [self.done, len(runner.train_dataloader)]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if not runner._resume or not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return
        self.resumed = True
        done, of = checkpoint['meta'].get(DONE, (0, 0))
        self.done = done if of == len(runner.train_dataloader) else 0
