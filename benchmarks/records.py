"""What class scores take in a cache, and what fewer bytes cost them: the sizes in the docs.

A segmentor sees images as a train pipeline draws them. Its class scores are stored in each way, and
compared with the exact ones; also multiplied, as a surer or less sure teacher's would be.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from rich.console import Console
from rich.table import Table

from benchmarks.gains.augmenting import zoo
from mmkd_plugin.cache.costs import Cost, softmax
from mmkd_plugin.cache.records import Record, pack, unpack
from mmkd_plugin.checkpoint import load_weights
from mmkd_plugin.cli import UsageError, check_number, plain_errors, read_config
from mmkd_plugin.stack import prepare, safe_loading
from mmkd_plugin.training_data import dataset_errors_named

#: Ways to store, by the words of the table: the type, and how many channels are kept.
WAYS = {
    'uint8': ('uint8', None),
    '--top-k 3': ('uint8', 3),
    'compact': ('compact', None),
    'smallest': ('smallest', None),
}


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    top = argparse.ArgumentParser(
        'python -m benchmarks.records', description=__doc__.partition('\n\n')[0]
    )
    top.add_argument('config', help='the config of a segmentor')
    top.add_argument('checkpoint', help='its weights')
    top.add_argument('--images', type=int, default=10, help='how many (10)')
    top.add_argument(
        '--times', type=float, nargs='+', default=[1.0], help='factors on the scores (1)'
    )
    top.add_argument('--tau', type=float, default=1.0, help='temperature (1)')
    return top


def class_scores(config: str, checkpoint: str, images: int) -> Iterator[np.ndarray]:
    """Yields the class scores ``(C, H, W)`` of images under the augmentation of the model zoo."""
    cfg = read_config(config)
    zoo(cfg)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    if not hasattr(model, 'decode_head'):
        raise UsageError(f'{config}: {type(model).__name__} is no segmentor')
    load_weights(model, checkpoint, name='segmentor', lenient=None)
    model.eval()
    with dataset_errors_named('train', cfg.train_dataloader):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    for index in np.linspace(0, len(dataset) - 1, images).astype(int):
        data = model.data_preprocessor(pseudo_collate([dataset[int(index)]]), True)
        with torch.no_grad():
            yield model(**data, mode='tensor')[0].numpy()


def cost_of(maps: Sequence[np.ndarray], dtype: str, top_k: int | None, tau: float) -> Cost:
    """What a way to store costs some maps."""
    cost, key = Cost(tau), b'key'
    for scores in maps:
        size = scores.shape[1:]
        packed = pack(Record([scores], size, size), key, dtype, top_k, tau)
        cost.add([scores], unpack(packed, key).maps, len(packed))
    return cost


def main() -> None:
    with safe_loading(), plain_errors():
        args = parser().parse_args()
        check_number(args.images, '--images', 1)
        check_number(args.tau, '--tau', 0.01)
        for times in args.times:
            check_number(times, '--times', 0.01)
        prepare()
        maps = [*class_scores(args.config, args.checkpoint, args.images)]
        table = Table(title=f'Class scores {tuple(maps[0].shape)}, temperature {args.tau:g}')
        for title in ('scores times', 'most probable class', 'stored', 'of float16', 'off by'):
            table.add_column(title)
        table.add_column('at most')
        table.add_column('divergence')
        for times in args.times:
            scaled = [times * one for one in maps]
            top = np.mean([softmax(one / args.tau).max(0).mean() for one in scaled])
            for name, way in WAYS.items():
                cost = cost_of(scaled, *way, args.tau)
                table.add_row(
                    f'{times:g}',
                    f'{top:.2f}',
                    name,
                    f'{np.mean(cost.stored) / np.mean(cost.half):.1%}',
                    f'{np.mean(cost.errors):.4f}',
                    f'{max(cost.largest):.3f}',
                    f'{np.mean(cost.divergences):.4f}',
                )
        Console().print(table)


if __name__ == '__main__':
    main()
