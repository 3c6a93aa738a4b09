"""Random numbers of a run: by the seed and the number of an iteration, so a resumed run has them.

mmengine seeds once. What is drawn later depends on everything that was drawn before: in a process
that loads data, on the images that this process has loaded. Nobody can restore that from a
checkpoint. So each image and each iteration is seeded here, and nothing has to be restored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from mmkd_plugin.seeds import seed_with

#: Kinds of things that are seeded; no two share random numbers.
IMAGE, ITERATION, EPOCH = range(3)

#: Where `meta` of a checkpoint says how many batches of the epoch were done, and of how many.
DONE = 'mmkd_batches_done'


class SeededBatch(list):
    """Indices of the images of a batch. Going through them seeds before each image.

    Args:
        indices (Iterable[int]): The indices.
        key (tuple[int, ...]): Key of the batch for :func:`seed_with`.
    """

    def __init__(self, indices: Iterable[Any], key: tuple[int, ...]) -> None:
        super().__init__(indices)
        self.key = key

    def __iter__(self) -> Iterator[Any]:
        for position, index in enumerate(super().__iter__()):
            seed_with(*self.key, position, devices=False)
            yield index

    def __reduce__(self) -> tuple:
        # Sending a batch to another process must not seed this one.
        return type(self), (list(super().__iter__()), self.key)


class SeededBatches:
    """A batch sampler whose batches are numbered and seeded.

    Args:
        batches (Iterable): The batch sampler.
        seed (int): Seed of the run.
        beside (Callable, optional): Further images for a batch, by its number. Defaults to None:
            there are none.

    Attributes:
        number (int): Number of the next batch, which is the iteration that it is for.
        skipped (int): How many batches the next pass leaves out.
    """

    def __init__(
        self, batches: Any, seed: int, beside: Callable[[int], Iterable[int]] | None = None
    ) -> None:
        self._batches, self._key = batches, (seed, IMAGE, get_rank())
        self._beside = beside
        self.number = self.skipped = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__['_batches'], name)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[SeededBatch]:
        skipped, self.skipped = self.skipped, 0
        for position, batch in enumerate(self._batches):
            self.number += 1
            if position >= skipped:
                more = self._beside(self.number - 1) if self._beside is not None else ()
                yield SeededBatch([*batch, *more], (*self._key, self.number - 1))

    def skip(self, sampler_skip: Callable[[int], None], samples: int) -> None:
        """Follows a sampler that leaves out images at the start."""
        sampler_skip(samples)
        self.number = samples // self._batches.batch_size


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
    beside = getattr(loader.dataset, 'beside', None)  # images without labels
    batches = SeededBatches(loader.batch_sampler, seed, beside)
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
        self.done = 0

    def before_train_epoch(self, runner: Runner) -> None:
        seed_with(runner.seed, EPOCH, runner.epoch)
        if self.batches is not None and isinstance(runner.train_loop, EpochBasedTrainLoop):
            self.batches.number = runner.iter - self.done
            self.batches.skipped = self.done

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
        done, of = checkpoint['meta'].get(DONE, (0, 0))
        self.done = done if of == len(runner.train_dataloader) else 0
