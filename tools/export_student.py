"""Write the student of a checkpoint as plain weights, and its config beside them.

Stock mmsegmentation and mmdetection load both without this package: OUT is a `.pth` file for
`init_model`, `init_detector` and the inferencers, or a `.safetensors` file; the config goes to
the same name with the suffix `.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmkd_plugin.checkpoint import load_state, read_checkpoint, state_dict_of
from mmkd_plugin.cli import UsageError, plain_errors, read_config, use_student
from mmkd_plugin.models.batch_augments import use_stock_preprocessor

SUFFIXES = ('.pth', '.safetensors')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help="the config of the training, or the student's own")
    parser.add_argument('checkpoint', help='a checkpoint of that training')
    parser.add_argument('out', type=Path, help='the file to write: .pth or .safetensors')
    parser.add_argument(
        '--live',
        action='store_true',
        help='take the weights that training went on with, not the averaged ones (EMA) that '
        'validation used',
    )
    return parser.parse_args()


def main() -> None:
    with plain_errors():
        args = parse_args()
        check_free(args.out, args.out.with_suffix('.py'))
        cfg = read_config(args.config)
        use_student(cfg)
        checkpoint = read_checkpoint(args.checkpoint)
        weights = live_weights(checkpoint, args.checkpoint) if args.live else checkpoint
        model = build(cfg)
        load_state(model, state_dict_of(weights, args.checkpoint), args.checkpoint, name='student')
        strip(cfg)
        meta = describe(checkpoint, cfg)
        write(args.out, model, meta, cfg)
    print(
        f'{args.out}: {len(model.state_dict())} tensors; its config: {args.out.with_suffix(".py")}'
    )


def check_free(*files: Path) -> None:
    """Refuse files that exist and a folder that cannot be written, before any work is done."""
    if files[0].suffix not in SUFFIXES:
        raise UsageError(f'{files[0]} must end with {" or ".join(SUFFIXES)}')
    for file in files:
        if file.exists():
            raise UsageError(f'{file} exists already; it is not overwritten')
    try:
        files[0].parent.mkdir(parents=True, exist_ok=True)
        files[0].touch()
        files[0].unlink()
    except OSError as error:
        raise UsageError(f'cannot write {files[0]}: {error.strerror}') from error


def live_weights(checkpoint: dict[str, Any], path: str) -> dict[str, Any]:
    """Take the weights that training went on with; mmengine swaps the two sets when it saves."""
    if 'ema_state_dict' not in checkpoint:
        raise UsageError(f'--live: {path} has one set of weights only, because EMAHook was off')
    ema = checkpoint['ema_state_dict']
    live = OrderedDict((key, value) for key, value in ema.items() if key != 'steps')
    live._metadata = getattr(ema, '_metadata', {})
    return dict(state_dict=live)


def build(cfg: Config) -> nn.Module:
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    return MODELS.build(cfg.model)


def strip(cfg: Config) -> None:
    """Remove from the student's config what belongs to that one run, or to this package."""
    cfg.load_from, cfg.resume = None, False
    for key in ('work_dir', 'launcher'):
        cfg.pop(key, None)
    if isinstance(imports := cfg.get('custom_imports', {}).get('imports'), list):
        cfg.custom_imports.imports = [i for i in imports if not i.startswith('mmkd_plugin')]
    use_stock_preprocessor(list(cfg.values()))


def describe(checkpoint: dict[str, Any], cfg: Config) -> dict[str, Any]:
    """Collect what inferencers read: the classes, and the config in case they are given none."""
    meta = checkpoint.get('meta') or {}
    kept = {
        k: meta[k] for k in ('dataset_meta', 'epoch', 'iter', 'CLASSES', 'PALETTE') if k in meta
    }
    return dict(kept, cfg=cfg.pretty_text)


def write(out: Path, model: nn.Module, meta: dict[str, Any], cfg: Config) -> None:
    weights = model.state_dict()
    if out.suffix == '.safetensors':
        try:
            from safetensors.torch import save_file
        except ImportError as error:
            raise UsageError('a .safetensors file needs: pip install safetensors') from error
        # The format holds tensors that share no memory, and text.
        tensors = {key: value.clone().contiguous() for key, value in weights.items()}
        text = json.dumps(meta.get('dataset_meta'), default=str)
        save_file(tensors, str(out), metadata=dict(format='pt', dataset_meta=text))
    else:
        torch.save(dict(meta=meta, state_dict=weights), out)
    cfg.dump(out.with_suffix('.py'))


if __name__ == '__main__':
    main()
