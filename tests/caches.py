"""Writing teacher caches in the tests, with the tool's own functions."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope

from tests.tools.tool_runs import load_tool


def write_cache(cfg: Config, path: Path, **options: Any) -> str:
    """Writes the cache that a config wants; returns its path."""
    tool, cfg = load_tool('cache_teacher'), copy.deepcopy(cfg)
    settings = dict(teacher=None, dtype='float16', top_k=None, scale=None, workers=0)
    settings.update(verify=False, mirrored=None, views=None, channels=None)
    args = argparse.Namespace(out=str(path), **{**settings, **options})
    init_default_scope(cfg.default_scope)
    tool.write_cache(cfg, tool.pick_teacher(cfg, args), args)
    return str(path)


def use_cache(cfg: Config, path: str, **changes: Any) -> Config:
    """The same config with a cached teacher, not wired yet."""
    cfg = copy.deepcopy(cfg)
    cfg.model.teacher = dict(type='mmkd_plugin.CachedTeacher', path=path, **changes)
    return cfg
