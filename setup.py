"""Package metadata.

The OpenMMLab packages are extras and never requirements: two stacks share their import names, and
installing the one over the other overwrites its files.
"""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def requirements(name):
    """Returns the requirements in ``requirements/<name>.txt``, comments left out."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith('#')]


VERSION = {}  # without importing the package
exec((ROOT / 'mmkd_plugin' / 'version.py').read_text(encoding='utf-8'), VERSION)
if VERSION['python_problem']():
    raise SystemExit(VERSION['python_problem']())


def long_description():
    """Returns the README."""
    return (ROOT / 'README.md').read_text(encoding='utf-8')


#: Tools that work on a clone, its documents or its environment.
FOR_CLONES = ('setup_env', 'make_metafiles.py', 'reproduce.py', 'stacks.py', 'zoo_sweep.py')


class BuildForMim(build_py):
    """Puts recipes and tools into the wheel, where mim looks for them. A clone has them itself."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, 'mmkd_plugin', '.mim')
        shutil.rmtree(target, ignore_errors=True)  # an earlier build may have left more
        skipped = shutil.ignore_patterns('__pycache__', *FOR_CLONES)
        for folder in ('configs', 'tools', 'benchmarks/gains'):  # the last one for the demo
            shutil.copytree(ROOT / folder, target / folder, ignore=skipped)
        for file in ('model-index.yml', 'benchmarks/__init__.py', 'benchmarks/lines.py'):
            shutil.copy(ROOT / file, target / file)


EXTRAS = {
    name: requirements(name)
    for name in ('onedl', 'upstream', 'benchmark', 'cache', 'demo', 'docs', 'reproduce', 'test')
}
EXTRAS['test'] += EXTRAS['docs']  # the tests build the pages

setup(
    name='mmkd-plugin',
    version=VERSION['__version__'],
    description='Knowledge distillation for mmsegmentation and mmdetection',
    long_description=long_description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>={}.{}'.format(*VERSION['OLDEST_PYTHON']),
    packages=find_packages(include=['mmkd_plugin', 'mmkd_plugin.*']),
    package_data={'mmkd_plugin': ['py.typed']},
    entry_points={'console_scripts': ['mmkd = mmkd_plugin.__main__:main']},
    install_requires=requirements('runtime'),
    extras_require=EXTRAS,
    zip_safe=False,
    cmdclass={'build_py': BuildForMim},
)
