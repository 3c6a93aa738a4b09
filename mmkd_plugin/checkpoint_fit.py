"""How well the weights in a file fit a model, and what to do if they do not."""

from __future__ import annotations

import json
import re
import shlex
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmkd_plugin.prefixes import is_counter, parts
from mmkd_plugin.words import some


@dataclass
class Fit:
    """How well a state dict fits a model, without BatchNorm's step counters."""

    expected: int
    missing: list[str]
    mismatched: list[str]
    foreign: list[str]  # keys without a place, in components of the model
    other_components: list[str]  # components that the model does not have
    errors: list[str]

    @property
    def matched(self) -> int:
        return self.expected - len(self.missing) - len(self.mismatched)

    @property
    def is_complete(self) -> bool:
        return not (self.missing or self.mismatched or self.foreign or self.errors)

    def describe(self, path: str | Path) -> str:
        percent = 100 * self.matched / max(self.expected, 1)
        percent_text = f'{int(percent * 10) / 10:g}'  # rounded down: 100 only when complete
        lines = [f'  covered: {self.matched} of {self.expected} tensors ({percent_text} %)']
        if self.missing:
            lines.append(f'  missing in the file: {some(self.missing)}')
        if self.mismatched:
            lines.append(f'  of another size: {some(self.mismatched, limit=5, separator="; ")}')
        if self.foreign:
            lines.append(
                f'  without a place in the model, so of another architecture: {some(self.foreign)}'
            )
        if self.errors:
            lines.append(f'  refused by the model: {some(self.errors, separator="; ")}')
        if self.other_components:
            lines.append(f'  not in the model, left out: {some(self.other_components)}')
        return '\n'.join(lines)


_SIZE_MISMATCH = re.compile(
    r'size mismatch for (?P<key>\S+): copying a param with shape (?P<file>.+?) from checkpoint, '
    r'the shape in current model is (?P<model>.+?)\.?$'
)


def load_fitting(model: nn.Module, state_dict: OrderedDict[str, Tensor]) -> Fit:
    """Loads the tensors that fit, and notes the others.

    ``load_state_dict`` names tensors of another size in its exception alone, the others in a hook.
    """
    missing: list[str] = []
    unexpected: list[str] = []
    errors: list[str] = []
    mismatched: list[str] = []

    def note(_: nn.Module, incompatible: Any) -> None:
        missing.extend(incompatible.missing_keys)
        unexpected.extend(incompatible.unexpected_keys)

    handle = model.register_load_state_dict_post_hook(note)
    try:
        model.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:
        for line in str(error).splitlines()[1:]:
            match = _SIZE_MISMATCH.match(line.strip())
            if match is None:
                errors.append(line.strip())
            else:
                file, own = (re.sub(r'torch\.Size', '', match[k]) for k in ('file', 'model'))
                mismatched.append(f'{match["key"]}: {file} in the file, {own} in the model')
    except IndexError as error:  # torch before 2.2, on an empty tensor for a single number
        errors.append(f'a tensor has no values ({error})')
    finally:
        handle.remove()

    own_keys = [key for key in model.state_dict() if not is_counter(key)]
    components = {key.partition('.')[0] for key in own_keys}
    unexpected = [key for key in unexpected if not is_counter(key)]
    others = dict.fromkeys(
        f'{key.partition(".")[0]}.*'
        for key in unexpected
        if key.partition('.')[0] not in components
    )
    return Fit(
        expected=len(own_keys),
        missing=[key for key in missing if not is_counter(key)],
        mismatched=mismatched,
        foreign=[key for key in unexpected if key.partition('.')[0] in components],
        other_components=list(others),
        errors=errors,
    )


_USE_OF_A_BACKBONE = (
    "a student's backbone takes it by `init_cfg` (`type='Pretrained'`), a teacher has to be "
    'trained as a whole.'
)


def hint(model: nn.Module, state_dict: Mapping[str, Tensor], fit: Fit, path: str | Path) -> str:
    """Says what to do about a file that does not fit: a line of its own, or nothing."""
    expected = {key: value.shape for key, value in model.state_dict().items()}
    only_backbone = all(key.startswith('backbone.') for key in state_dict)
    if fit.matched and fit.missing and only_backbone:
        return f'\n  The file holds a backbone alone; {_USE_OF_A_BACKBONE}'
    return prefix_hint(expected, state_dict, path)


def program(path: str | Path, prefix: str) -> str:
    """The line to type that saves the part of a file behind a prefix."""
    text = (
        f'import torch; ckpt = torch.load({json.dumps(str(path))}, map_location="cpu"); '
        f'state = ckpt.get("state_dict", ckpt); start = {json.dumps(prefix)}; '
        'part = {k[len(start):]: v for k, v in state.items() if k.startswith(start)}; '
        'torch.save({"state_dict": part}, "weights.pth")'
    )
    return f'python -c {shlex.quote(text)}'


def prefix_hint(
    expected: Mapping[str, torch.Size],
    state_dict: Mapping[str, Tensor],
    path: str | Path = 'CHECKPOINT',
) -> str:
    """Says what to do about keys that have a prefix too many, or lack one."""
    best = next(iter(parts(expected, state_dict)), None)
    if best is not None and best.prefix:
        return (
            f'\n  {best.matched} of its tensors fit behind the prefix `{best.prefix}`. To save '
            f'that part: {program(path, best.prefix)}'
        )
    if sum(f'backbone.{key}' in expected for key in state_dict) > len(state_dict) // 2:
        return f'\n  Its keys are those of a backbone alone; {_USE_OF_A_BACKBONE}'
    return ''
