"""Teacher connectors: frozen modules on the teacher's maps, trained before the student."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mmkd_plugin.annotations import expected, fits
from mmkd_plugin.building import build_module, kind_of
from mmkd_plugin.checkpoint import read_checkpoint, state_dict_of
from mmkd_plugin.terms.lines import takes
from mmkd_plugin.words import short


def build_teacher_connectors(config: Any, maps: Sequence[Tensor], term: str) -> list[nn.Module]:
    """Builds the frozen connectors of the teacher's maps and loads their trained weights.

    Args:
        config (dict): ``dict(type=..., checkpoint=...)``. With ``checkpoint=None`` the weights stay
            random.
        maps (Sequence[Tensor]): The teacher's maps ``(N, C, H, W)``.
        term (str): Name of the term.

    Returns:
        list[nn.Module]: One module for each map, in eval mode.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If the config cannot be built, or the weights do not fit.
    """
    here = f'distill.{term}.teacher_connector'
    if not isinstance(config, dict) or 'type' not in config:
        raise ValueError(
            f"{here}: expected dict(type='mmkd_plugin.Paraphraser'), got {short(config)}"
        )
    if 'checkpoint' not in config:
        raise ValueError(
            f'{here} has no `checkpoint`: it is trained before the student. '
            f'{_command(config, here)}, which says where its weights are'
        )
    path = config['checkpoint']
    if not fits(path, str | None):
        raise ValueError(f'{here}.checkpoint must be {expected(str | None)}, got {short(path)}')
    config = {key: value for key, value in config.items() if key != 'checkpoint'}
    modules = [build_module(config, here, dict(in_channels=x.shape[1])) for x in maps]
    for module in modules:
        takes(module, ('map',), here, 'a connector')
    if path is None and is_measured(config, here):
        raise ValueError(f'{here}.checkpoint is None. {_command(config, here)}')
    if path is None:
        print_log(f'{here} has no checkpoint: its weights are random.', 'current', logging.WARNING)
    else:
        load_teacher_connectors(modules, path, term, _command(config, here))
    for module in modules:
        module.requires_grad_(False).eval()
        if hasattr(module, 'drop_decoder'):
            module.drop_decoder()
    return modules


def is_measured(config: dict, here: str) -> bool:
    """Whether a teacher connector is measured on maps, and not trained.

    Args:
        config (dict): Its config, with ``type``.
        here (str): Its place in the config, for the error.

    Raises:
        ValueError: If there is no such type.
    """
    return hasattr(kind_of(config['type'], here), 'observe')


def _command(config: dict, here: str) -> str:
    if is_measured(config, here):
        return 'Measure it with tools/fit_connector.py CONFIG'
    return 'Train it with tools/train.py CONFIG --paraphraser'


def load_teacher_connectors(
    modules: Sequence[nn.Module], path: str, term: str, command: str
) -> None:
    """Loads the weights that the stage before the student saved.

    Their names in the file are ``<term>.<number of the map>.<weight>``.

    Args:
        modules (Sequence[nn.Module]): One module for each map.
        path (str): The file.
        term (str): Name of the term. If the file has a single term, its name does not matter.
        command (str): Advice for errors: the command that makes the file.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the weights do not fit.
    """
    here = f'distill.{term}.teacher_connector'
    try:
        state = state_dict_of(read_checkpoint(path), path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{here}: {error}. {command}') from error
    names = list(dict.fromkeys(key.partition('.')[0] for key in state))
    name = term if term in names or len(names) != 1 else names[0]
    wanted = {
        f'{name}.{number}.{key}': value
        for number, module in enumerate(modules)
        for key, value in module.state_dict().items()
    }
    held = {key: value for key, value in state.items() if key.startswith(f'{name}.')}
    wrong = [key for key in wanted if key not in held or held[key].shape != wanted[key].shape]
    wrong += [key for key in held if key not in wanted]
    if wrong:
        saved, expected = (
            tuple(x[wrong[0]].shape) if wrong[0] in x else 'nothing' for x in (held, wanted)
        )
        raise ValueError(
            f'{here}: {path} was trained for another teacher, tap or ratio: {wrong[0]} is {saved} '
            f'in the file and {expected} in this config. Make the file again. {command}'
        )
    for number, module in enumerate(modules):
        start = f'{name}.{number}.'
        module.load_state_dict({k[len(start) :]: state[k] for k in wanted if k.startswith(start)})
