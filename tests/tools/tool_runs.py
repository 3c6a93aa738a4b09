"""Running the tools, as a user does or in this process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import torch
from mmengine.registry import MODELS, init_default_scope

from mmkd_plugin.cli import read_config
from tests.attacks.harness import call_tool, fork

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


def load_tool(name: str) -> ModuleType:
    """Imports ``tools/<name>.py`` as a module, to call its functions in this process."""
    spec = importlib.util.spec_from_file_location(f'tool_{name}', TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # data classes look their module up
    spec.loader.exec_module(module)
    return module


def run_tool(name: str, *args: object, cwd: Path) -> str:
    """Runs a tool in a fork of this process, which has the libraries; returns what it printed."""

    main = load_tool(name).main

    def run() -> None:
        os.chdir(cwd)
        call_tool(main, name, args)

    with tempfile.TemporaryDirectory() as logs:
        ending = fork(run, Path(logs), limit=1200)
    assert ending.status == 0, ending.log[-4000:]
    return ending.log


def start_tool(name: str, *args: object, cwd: Path) -> str:
    """Runs a tool as a user does: from a clone, without PYTHONPATH; returns what it printed.

    Each tool needs that once: :func:`run_tool` is faster by all imports.
    """
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    env.update(CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
    done = subprocess.run(
        [sys.executable, str(TOOLS / f'{name}.py'), *map(str, args)],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def save_random_weights(config: Path, file: Path) -> None:
    """Saves random weights of the model of a config, the same ones each time."""
    cfg = read_config(str(config))
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), file)
