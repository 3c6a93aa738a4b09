"""The examples in the docstrings run, and whatever a config can name has one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
from mmengine.logging import MMLogger

import mmkd_plugin
from mmkd_plugin.registry import HOOKS, METRICS, MODELS
from tests.imports import import_all

MODULES = [
    'mmkd_plugin',
    *(info.name for info in pkgutil.walk_packages(mmkd_plugin.__path__, 'mmkd_plugin.')),
]


def examples_of(module):
    return [test for test in doctest.DocTestFinder(recurse=True).find(module) if test.examples]


@pytest.mark.parametrize('name', MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    MMLogger.get_current_instance()  # one that an example makes would print into the example,
    import_all()  # and so would the libraries, when they are imported
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    failed = []
    for test in examples_of(module):
        said: list[str] = []
        if runner.run(test, out=said.append).failed:
            failed.append(''.join(said))
    assert not failed, '\n'.join(failed)


def test_what_a_config_can_name_has_an_example():
    for registry in (MODELS, METRICS, HOOKS):
        registry.import_from_location()
    own = {
        kind
        for registry in (MODELS, METRICS, HOOKS)
        for kind in registry.module_dict.values()
        if kind.__module__ in MODULES
    }
    documented = {
        test.name
        for name in {kind.__module__ for kind in own}
        for test in examples_of(importlib.import_module(name))
    }
    assert own
    assert not {f'{kind.__module__}.{kind.__qualname__}' for kind in own} - documented
