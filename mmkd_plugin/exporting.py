"""Exporting: the config of a student, free of the training that it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, VISUALIZERS, Registry, root
from torch import nn

from mmkd_plugin.beside import reach_modules
from mmkd_plugin.foreign import errors_named

#: Parts of a config that are used where a model predicts.
USED = ('model', 'test_pipeline', 'visualizer')


def add_test_pipeline(cfg: Config) -> None:
    """Adds the ``test_pipeline`` that ``inference_model`` of mmseg reads, if there is none.

    Args:
        cfg (Config): A config, changed in place. Its pipeline is that of its test data.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset')
    while isinstance(dataset, dict) and 'pipeline' not in dataset:
        inner = dataset.get('dataset') or dataset.get('datasets')
        dataset = inner[0] if isinstance(inner, (list, tuple)) and inner else inner
    if isinstance(dataset, dict) and not cfg.get('test_pipeline'):
        cfg.test_pipeline = dataset['pipeline']


def build_and_leave_out_imports(cfg: Config) -> tuple[nn.Module, list[str]]:
    """Builds the model of a config, and leaves out the imports that its use does not need.

    Each import is done by itself, to see what it changes of the model, the test pipeline and the
    visualizer. One that something else in the config needs stays, but may fail.

    Args:
        cfg (Config): A config that was read without its ``custom_imports``; changed in place.

    Returns:
        tuple[nn.Module, list[str]]: The model, and the imports that it cannot do without.

    Raises:
        ValueError: If it cannot be built with all imports.
        ImportError: If a module cannot be imported that may be needed.
    """
    names = (cfg.get('custom_imports') or {}).get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    cfg.pop('custom_imports', None)
    needed: list[str] = []
    others: list[str] = []
    waiting: list[str] = []  # for what another import adds
    now = _Parts.of(cfg)
    for name in names:
        known, before = _registered(), now
        try:
            _import(name, cfg.filename)
        except ImportError:
            if now.model is None:
                raise
            continue
        new, now = _registered() - known, _Parts.of(cfg)
        if now.kinds != before.kinds:
            needed += [*waiting, name]
            waiting = []
        elif new & set(_types_in([cfg.get(key) for key in USED])):
            waiting.append(name)
        elif new & set(_types_in(list(cfg.values()))):
            others.append(name)
    if now.model is None:
        with errors_named('model', cfg.model):
            raise now.error
    if needed or others:
        kept = [name for name in names if name in (*needed, *others)]
        cfg.custom_imports = dict(imports=kept, allow_failed_imports=not needed)
    return now.model, needed


@dataclass
class _Parts:
    """What is used of a config where a model predicts.

    Args:
        model (nn.Module | None): The model, None if it cannot be built.
        error (Exception | None): Why not.
        kinds (list): The classes of all parts, with what is in them.
    """

    model: nn.Module | None
    error: Exception | None
    kinds: list[Any]

    @classmethod
    def of(cls, cfg: Config) -> _Parts:
        model = error = None
        try:
            model = MODELS.build(cfg.model)
        except Exception as caught:  # whatever a model makes of a part that is missing
            error = caught
        kinds = [type(part) for part in model.modules()] if model is not None else [None]
        for registry, key in ((TRANSFORMS, 'test_pipeline'), (VISUALIZERS, 'visualizer')):
            kinds += [registry.get(kind) for kind in _types_in(cfg.get(key))]
        return cls(model, error, [_content(kind) for kind in kinds])


def _content(kind: Any) -> list[tuple[str, int]]:
    """What a class is and holds, to see whether an import has replaced a part of it."""
    parts = [vars(one) for one in getattr(kind, '__mro__', ())]
    return [('', id(kind)), *((key, id(value)) for part in parts for key, value in part.items())]


def _import(name: str, config: str | None) -> None:
    reached = False
    try:
        import_module(name)
    except ImportError as error:
        reached = config is not None and reach_modules(error, config)
        if not reached:
            raise
    if reached:
        import_module(name)


def _types_in(value: Any) -> Iterator[str]:
    """The names of all classes in nested dicts and lists, without their scopes."""
    if isinstance(value, dict):
        if isinstance(value.get('type'), str):
            yield value['type'].rpartition('.')[2]
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _types_in(one)


def _registered() -> set[str]:
    """The names in all registries, also in those of libraries, which are filled first."""
    registries = list(_family(vars(root).values()))
    for one in registries:
        one.import_from_location()
    return {name for one in registries for name in one.module_dict}


def _family(registries: Iterable[Any]) -> Iterator[Registry]:
    for one in registries:
        if isinstance(one, Registry):
            yield one
            yield from _family(one.children.values())
