"""Writing teacher caches in the tests, with the tool's own functions."""

from __future__ import annotations

import argparse
import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmkd_plugin.cache_writing import Settings
from tests.tools.tool_runs import load_tool


def write_cache(cfg: Config, path: Path, **options: Any) -> str:
    """Writes the cache that a config wants; returns its path."""
    tool, cfg = load_tool('cache_teacher'), copy.deepcopy(cfg)
    settings = Settings(str(path), workers=0)
    given = dict(vars(settings), teacher=None, verify=False) | options
    args = argparse.Namespace(**given)
    init_default_scope(cfg.default_scope)
    config = tool.pick_teacher(cfg, args)
    given = {one.name: getattr(args, one.name) for one in fields(Settings)}
    tool.write_cache(cfg, config, Settings(**given))
    return str(path)


def use_cache(cfg: Config, path: str, **changes: Any) -> Config:
    """The same config with a cached teacher, not wired yet."""
    cfg = copy.deepcopy(cfg)
    cfg.model.teacher = dict(type='mmkd_plugin.CachedTeacher', path=path, **changes)
    return cfg
