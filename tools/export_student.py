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
from io import BytesIO
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmkd_plugin.checkpoint import load_state, meta_of, read_checkpoint, state_dict_of
from mmkd_plugin.cli import (
    UsageError,
    check_file,
    plain_errors,
    read_config,
    stages,
    use_scope,
    use_student,
)
from mmkd_plugin.exporting import add_test_pipeline, build_and_leave_out_imports
from mmkd_plugin.libraries import import_reason
from mmkd_plugin.models.batch_augments import use_stock_preprocessor
from mmkd_plugin.saving import replacing
from mmkd_plugin.stack import safe_loading
from mmkd_plugin.words import first_line, some

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
    parser.add_argument(
        '--half',
        action='store_true',
        help='write the weights as float16: half the size; they become float32 as they are loaded',
    )
    return parser.parse_args()


def main() -> None:
    with safe_loading(), plain_errors():
        args = parse_args()
        check_free(args.out)
        cfg = read_config(args.config, imports=False)
        use_student(cfg)
        strip(cfg)
        with stages(3) as begin:
            begin('building the student')
            model, needed = build(cfg)
            text = cfg.pretty_text
            check_same(args.out.with_suffix('.py'), text)
            begin('reading the checkpoint')
            checkpoint = read_checkpoint(args.checkpoint)
            weights = live_weights(checkpoint, args.checkpoint) if args.live else checkpoint
            state = state_dict_of(weights, args.checkpoint)
            load_state(model, state, args.checkpoint, name='student', lenient=None)
            begin('writing both files')
            tensors = half(model.state_dict()) if args.half else model.state_dict()
            write(args.out, tensors, describe(checkpoint, text), text)
    print(f'{args.out}: {len(tensors)} tensors; its config: {args.out.with_suffix(".py")}')
    if needed:
        print(f'This config needs modules of your own wherever it is used: {some(needed)}.')


def check_free(out: Path) -> None:
    """Refuse a file that exists and a folder that cannot be written, before any work is done."""
    if out.suffix not in SUFFIXES:
        raise UsageError(f'{out} must end with {" or ".join(SUFFIXES)}')
    if out.exists():
        raise UsageError(f'{out} exists already; it is not overwritten')
    check_file(out, 'out')


def check_same(file: Path, text: str) -> None:
    """Refuse another file in the place of the config; one that is the same stays."""
    try:
        same = not file.exists() or file.read_text(encoding='utf-8') == text
    except (OSError, ValueError):
        same = False
    if not same:
        raise UsageError(f'{file} exists already; it is not overwritten')


def live_weights(checkpoint: dict[str, Any], path: str) -> dict[str, Any]:
    """Take the weights that training went on with; mmengine swaps the two sets when it saves."""
    if 'ema_state_dict' not in checkpoint:
        raise UsageError(f'--live: {path} has one set of weights only, because EMAHook was off')
    ema = checkpoint['ema_state_dict']
    live = OrderedDict((key, value) for key, value in ema.items() if key != 'steps')
    live._metadata = getattr(ema, '_metadata', {})
    return dict(state_dict=live)


def build(cfg: Config) -> tuple[nn.Module, list[str]]:
    """Build the student, and say which modules of the user that needs."""
    use_scope(cfg)
    try:
        return build_and_leave_out_imports(cfg)
    except ImportError as error:
        raise UsageError(f'custom_imports: {import_reason(error)}') from error


def strip(cfg: Config) -> None:
    """Remove from the student's config what belongs to that one run, or to this package."""
    cfg.load_from, cfg.resume = None, False
    for key in ('work_dir', 'launcher'):
        cfg.pop(key, None)
    cfg.pop('custom_hooks', None)  # which are called in training and testing alone
    add_test_pipeline(cfg)
    use_stock_preprocessor(list(cfg.values()))


def describe(checkpoint: dict[str, Any], text: str) -> dict[str, Any]:
    """Collect what inferencers read: the classes, and the config in case they are given none."""
    meta = meta_of(checkpoint)
    kept = {
        k: meta[k] for k in ('dataset_meta', 'epoch', 'iter', 'CLASSES', 'PALETTE') if k in meta
    }
    return dict(kept, cfg=text)


def half(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give floating numbers as float16; refuse those beyond its range."""
    largest = torch.finfo(torch.float16).max
    for name, value in weights.items():
        if value.is_floating_point() and (value.abs() > largest).any():
            raise UsageError(f'--half: {name} has values beyond the {largest:g} of float16')
    return {n: v.half() if v.is_floating_point() else v for n, v in weights.items()}


def write(out: Path, weights: dict[str, Tensor], meta: dict[str, Any], text: str) -> None:
    """Write both files; the weights are there when both are whole."""
    try:
        with replacing(out, out.with_suffix('.py')) as (file, config):
            write_weights(file, out.suffix, weights, meta)
            config.write_text(text, encoding='utf-8')
    except (OSError, RuntimeError) as error:  # of torch, safetensors and the system
        raise UsageError(
            f'cannot write {out}: {first_line(error.__cause__ or error)}; nothing is left of it, '
            'and the same command can be run again'
        ) from error


def write_weights(
    file: Path, suffix: str, weights: dict[str, Tensor], meta: dict[str, Any]
) -> None:
    if suffix == '.safetensors':
        try:
            from safetensors.torch import save
        except ImportError as error:
            raise UsageError('a .safetensors file needs: pip install safetensors') from error
        # The format holds tensors that share no memory, and text.
        tensors = {key: value.clone().contiguous() for key, value in weights.items()}
        about = json.dumps(meta.get('dataset_meta'), default=str)
        file.write_bytes(save(tensors, metadata=dict(format='pt', dataset_meta=about)))
    else:
        content = BytesIO()  # torch says little of a disk that is full
        torch.save(dict(meta=meta, state_dict=weights), content)
        file.write_bytes(content.getbuffer())


if __name__ == '__main__':
    main()
