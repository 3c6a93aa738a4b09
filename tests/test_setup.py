"""Installing: what the package requires, the environment script, the Makefile. No network."""

import ctypes
import io
import itertools
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import threading
import venv
import zipfile
from pathlib import Path

import packaging
import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

from setup_env import console, environment, joining, steps, wheels  # noqa: E402

KEY = 'cp311-linux_x86_64-torch2.13.0+cpu-onedl_mmcv2.3.6'
# Not MMRazor: its files are read, the package is never imported.
OPENMMLAB = re.compile(r'(onedl-)?(mm(?!razor)|open-mmlab|openmim)', re.I)


@pytest.fixture
def metadata(monkeypatch):
    """The arguments that setup.py gives to setuptools."""
    caught = {}
    monkeypatch.setattr(setuptools, 'setup', lambda **arguments: caught.update(arguments))
    monkeypatch.chdir(ROOT)
    runpy.run_path('setup.py')
    return caught


@pytest.fixture
def site(tmp_path):
    """An environment with ``packaging``, which reads requirements, and nothing else."""
    path = tmp_path / 'env'
    venv.create(path, with_pip=False)
    env = environment.Environment(path, 'onedl')
    env.claim({})
    folder = next(path.glob('lib/python*/site-packages'))
    shutil.copytree(Path(packaging.__file__).parent, folder / 'packaging')
    return env, folder


def add(folder: Path, name: str, version: str, requires=(), whole=True) -> Path:
    """Puts a package's metadata into an environment."""
    info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir()
    lines = ['Metadata-Version: 2.1', f'Name: {name}', f'Version: {version}']
    lines += [f'Requires-Dist: {requirement}' for requirement in requires]
    (info / 'METADATA').write_text('\n'.join([*lines, '']))
    (info / 'RECORD').write_text('')
    if whole:
        (info / 'INSTALLER').write_text('pip')
    return info


def make_wheel(path: Path, member: str = 'mmcv/_ext.cpython-311-x86_64-linux-gnu.so') -> Path:
    """Writes a small wheel with one file in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(member, b'x' * 5000)
    return path


class Recorder(steps.Setup):
    """A set-up whose pip only says what it was asked for."""

    def __init__(self, env, cache, ops='cached', libs=('mmseg',), torch='', extras=()):
        super().__init__(env, torch, list(libs), ops, list(extras), cache)
        self.calls = []
        env.run = self.fake_run
        env.check = lambda *_: None
        env.import_error = lambda module: None

    def fake_run(self, command, log, **_):
        self.calls.append(command)

    def with_cuda(self):
        return False


# ---------------------------------------------------------------- package


def test_requires_nothing_of_openmmlab(metadata):
    assert metadata['name'] == 'mmkd-plugin'
    assert [r for r in metadata['install_requires'] if OPENMMLAB.match(r)] == []
    assert {environment.name_of(r) for r in metadata['install_requires']} <= {
        'torch',
        'numpy',
        'rich',
    }
    assert not any('==' in requirement for requirement in metadata['install_requires'])


def test_extras_name_both_stacks(metadata):
    for stack, names in steps.STACKS.items():
        pins = metadata['extras_require'][stack]
        for name in names.values():
            assert any(re.fullmatch(rf'{name}==[\d.]+', pin) for pin in pins), (stack, name)
    for extra in ('demo', 'docs', 'reproduce', 'test'):
        assert metadata['extras_require'][extra]
        assert not [r for r in metadata['extras_require'][extra] if OPENMMLAB.match(r)]
    assert {*metadata['extras_require']['docs']} <= {*metadata['extras_require']['test']}


def test_every_place_names_the_same_pythons(metadata):
    oldest, newest = ('.'.join(map(str, version)) for version in (steps.OLDEST, steps.NEWEST))
    assert metadata['python_requires'] == f'>={oldest}'
    target = 'py' + oldest.replace('.', '')
    assert f'target-version = "{target}"' in (ROOT / 'pyproject.toml').read_text()
    assert (ROOT / 'Makefile').read_text().count(f'{oldest} to {newest}') == 2
    script = (ROOT / 'tools/setup_env/__main__.py').read_text()
    assert f'sys.version_info < {steps.OLDEST}' in script and f'Python {oldest} or newer' in script


@pytest.mark.parametrize('version', [(3, 8, 20), (3, 9, 16)])
def test_an_old_python_is_told(version, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, 'version_info', version)
    told = f'^mmkd_plugin needs Python 3.10 or newer, and this is {version[0]}.{version[1]}: .*3.11'
    with pytest.raises(SystemExit, match=told):
        runpy.run_path('setup.py')
    with pytest.raises(ImportError, match=told):
        runpy.run_path('mmkd_plugin/__init__.py')


def test_an_old_torch_gets_packages_of_its_time(site):
    env, folder = site
    add(folder, 'torch', '2.1.2')
    assert {'numpy<2', 'transformers<4.47'} < set(env.constraints().read_text().split())


def test_packages_are_the_plugin_alone(metadata):
    assert metadata['packages'] and 'mmkd_plugin' in metadata['packages']
    assert all(name.split('.')[0] == 'mmkd_plugin' for name in metadata['packages'])


def test_import_pulls_in_no_library():
    code = (
        'import sys, mmkd_plugin; '
        'print([m for m in ("mmseg", "mmdet", "mmcv") if m in sys.modules], '
        'mmkd_plugin.__version__)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('[] ')


# ---------------------------------------------------------------- cache of wheels


@pytest.mark.parametrize(
    ('variables', 'expected'),
    [
        ({'MMKD_CACHE': '/a/b'}, '/a/b'),
        ({'XDG_CACHE_HOME': '/x', 'MMKD_CACHE': ''}, '/x/mmkd'),
        ({'HOME': '/h'}, '/h/.cache/mmkd'),
    ],
)
def test_cache_root(monkeypatch, variables, expected):
    for name in ('MMKD_CACHE', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wheels.cache_root() == Path(expected)


def test_key_names_what_ops_depend_on():
    args = ['cp311', 'linux_x86_64', '2.13.0+cpu', 'onedl-mmcv', '2.3.6']
    assert wheels.wheel_key(*args) == KEY
    keys = {wheels.wheel_key(*args, cuda=True), KEY}
    for position in range(len(args)):
        keys.add(wheels.wheel_key(*args[:position], args[position] + '1', *args[position + 1 :]))
    assert len(keys) == 7


def test_finished_wheel_is_found(tmp_path):
    cache = wheels.WheelCache(tmp_path)
    assert cache.find(KEY) is None
    built = make_wheel(cache.work(KEY) / 'out' / 'onedl_mmcv-2.3.6.whl')
    assert cache.find(KEY) is None
    final = cache.publish(KEY, built)
    assert cache.find(KEY) == final == cache.folder(KEY) / built.name
    assert not built.exists()


def test_half_or_opless_wheel_is_not_taken(tmp_path):
    cache = wheels.WheelCache(tmp_path)
    whole = make_wheel(tmp_path / 'whole.whl').read_bytes()
    cache.folder(KEY).mkdir(parents=True)
    (cache.folder(KEY) / 'a.whl').write_bytes(whole[: len(whole) // 2])
    (cache.folder(KEY) / 'b.whl.part').write_bytes(whole)
    make_wheel(cache.folder(KEY) / 'c.whl', 'mmcv/ops/__init__.py')
    assert cache.find(KEY) is None
    with pytest.raises(console.StepError, match=r'without mmcv\._ext'):
        cache.publish(KEY, make_wheel(tmp_path / 'd.whl', 'mmcv/__init__.py'))


def test_lock_lets_one_in_at_a_time(tmp_path):
    path, waits, inside = tmp_path / 'build' / 'lock', threading.Event(), []

    def second():
        with wheels.locked(path, waits.set):
            inside.append('second')

    with wheels.locked(path, lambda: pytest.fail('it is free')):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(10)
        inside.append('first')
    thread.join(10)
    assert inside == ['first', 'second']


# ---------------------------------------------------------------- asking the environment


def test_probe_compares_versions_down_to_dependencies(site):
    env, folder = site
    add(folder, 'Onedl_MMCV', '2.3.6', ['numpy>=2', 'nonsense; extra == "all"'])
    add(folder, 'numpy', '1.26.0')
    state = env.probe(['onedl-mmcv==2.3.6', 'onedl-mmcv==2.4', 'absent'])
    assert state['versions']['onedl-mmcv'] == '2.3.6'
    assert state['missing'] == [
        'numpy>=2 (1.26.0 is there)',
        'onedl-mmcv==2.4 (2.3.6 is there)',
        'absent (missing)',
    ]
    assert state['ext'] is False and state['half'] == []


def test_local_version_satisfies_pin_and_is_kept(site):
    env, folder = site
    add(folder, 'torch', '2.13.0+cpu')
    assert env.probe(['torch==2.13.0'])['missing'] == []
    assert 'torch==2.13.0+cpu' in env.constraints().read_text().split()


def test_half_installed_package_is_installed_again(site):
    env, folder = site
    info = add(folder, 'torch', '2.13.0', whole=False)
    state = env.probe(['torch==2.13.0'])
    assert state['missing'] == ['torch==2.13.0 (missing)'] and state['half'] == [str(info)]
    Recorder(env, None).remove_half_installed()
    assert not info.exists()


def test_satisfied_steps_are_skipped(site, tmp_path, capsys):
    env, folder = site
    setup = Recorder(env, wheels.WheelCache(tmp_path), extras=['demo'])
    setup.make_venv = lambda: 'already there'
    lines = [
        *environment.read_requirements('demo'),
        *environment.read_requirements('runtime'),
        'wheel',
        'packaging',
        'opencv-python',
        'torch==2.13.0',
        'setuptools==80.9',
        *(setup.pins[name] for name in ('mmengine', 'mmcv', 'mmseg')),
    ]
    versions = {}
    for line in lines:
        version = line.split('==')[1] if '==' in line else '2.2'
        versions[environment.name_of(line)] = version
    versions['numpy'] = '2.2.6'
    for name, version in versions.items():
        add(folder, name, version)
    add(folder, 'mmkd-plugin', runpy.run_path(ROOT / 'mmkd_plugin/version.py')['__version__'])
    (folder / 'plugin.pth').write_text(str(ROOT))
    setup.run()
    assert setup.calls == []
    assert capsys.readouterr().out.count('already there') == 7

    shutil.rmtree(next(folder.glob('onedl_mmsegmentation-*')))
    setup.run()
    assert len(setup.calls) == 1 and setup.calls[0][-1] == setup.pins['mmseg']


def test_torch_of_another_version_is_replaced_only_if_asked(site, tmp_path):
    env, folder = site
    add(folder, 'torch', '2.9.0')
    setup = Recorder(env, wheels.WheelCache(tmp_path))
    assert 'torch 2.9.0 already there' in setup.install_torch() and not setup.calls
    setup = Recorder(env, wheels.WheelCache(tmp_path), torch='torch==2.10.0 --no-deps')
    setup.install_torch()
    assert setup.calls[0][-2:] == ['torch==2.10.0', '--no-deps']


def test_packages_of_an_adopted_environment_stay(site, tmp_path):
    env, folder = site
    add(folder, 'numpy', '2.4.0')
    add(folder, 'onedl-mmcv', '2.3.5')
    env.claim({'numpy': '2.4.0', 'onedl-mmcv': '2.3.5'})
    assert env.wanted(['numpy<2.3', 'rich>=1']) == ['numpy', 'rich>=1']
    pins = env.constraints().read_text().split()
    assert 'numpy==2.4.0' in pins and 'numpy<2.3' not in pins
    assert 'yours' in Recorder(env, wheels.WheelCache(tmp_path)).install_mmcv()
    with pytest.raises(console.StepError, match='no compiled ops'):
        Recorder(env, wheels.WheelCache(tmp_path), ops='required').install_mmcv()


def test_one_stack_is_not_installed_over_the_other(site):
    env, folder = site
    add(folder, 'mmcv', '2.1.0')
    with pytest.raises(console.StepError, match='would overwrite') as caught:
        Recorder(env, None).install_torch()
    assert 'STACK=upstream' in caught.value.hint


# ---------------------------------------------------------------- mmcv


def mmcv_site(site, ops: bool):
    env, folder = site
    add(folder, 'torch', '2.13.0+cpu')
    add(folder, 'onedl-mmcv', '2.3.6')
    (folder / 'mmcv').mkdir()
    (folder / 'mmcv' / '__init__.py').touch()
    if ops:
        (folder / 'mmcv' / '_ext.so').touch()
    return env


def cached_wheel(env, tmp_path) -> wheels.WheelCache:
    cache = wheels.WheelCache(tmp_path / 'cache')
    make_wheel(cache.folder(Recorder(env, cache).key(env.probe())) / 'onedl_mmcv-2.3.6.whl')
    return cache


def test_mmcv_without_ops_is_enough_until_they_are_required(site, tmp_path):
    env = mmcv_site(site, ops=False)
    empty = wheels.WheelCache(tmp_path / 'empty')
    for ops in ('never', 'cached'):
        assert 'without' in Recorder(env, empty, ops).install_mmcv()
    for ops in ('cached', 'required'):
        setup = Recorder(env, cached_wheel(env, tmp_path), ops)
        assert 'with compiled ops' in setup.install_mmcv()
        assert '--force-reinstall' in setup.calls[0] and setup.calls[0][-1].endswith('.whl')


def test_mmcv_with_ops_is_kept(site, tmp_path):
    env = mmcv_site(site, ops=True)
    for ops in ('never', 'cached', 'required'):
        setup = Recorder(env, wheels.WheelCache(tmp_path), ops)
        assert setup.install_mmcv() == 'already there, with compiled ops' and not setup.calls


@pytest.mark.parametrize('package', ['onedl_mmcv2.3.6', 'mmcv2.1.0'])
def test_ops_for_another_torch_are_seen(site, package):
    setup = Recorder(mmcv_site(site, ops=True), None)
    for torch, other in (('2.13.0%2Bcpu', False), ('2.12.0', True)):
        url = f'file:///cache/wheels/cp311-linux_x86_64-torch{torch}-{package}/x.whl'
        state = {'urls': {'onedl-mmcv': {'url': url}}, 'versions': {'torch': '2.13.0+cpu'}}
        assert setup.built_for_another_torch(state) is other


def test_killed_build_leaves_nothing_to_take_and_goes_on(site, tmp_path, monkeypatch):
    env = mmcv_site(site, ops=False)
    cache = wheels.WheelCache(tmp_path / 'cache')
    setup = Recorder(env, cache, 'required')
    key = setup.key(env.probe())
    source = cache.work(key) / 'source'
    source.mkdir(parents=True)
    (source / 'compiled.o').touch()
    monkeypatch.setenv('CXX', sys.executable)

    def build(command, log, **_):
        setup.calls.append(command)
        if 'wheel' in command:
            assert (source / 'compiled.o').exists()
            path = make_wheel(cache.work(key) / 'out' / 'onedl_mmcv-2.3.6.whl')
            if len(setup.calls) == 1:
                path.write_bytes(path.read_bytes()[:100])
                raise KeyboardInterrupt

    env.run = build
    env.install = lambda *_, **__: 'already there'
    state = {**env.probe(), 'headers': True}
    with pytest.raises(KeyboardInterrupt):
        setup.build(key, state)
    assert cache.find(key) is None and (source / 'compiled.o').exists()
    assert setup.build(key, state) == cache.find(key)
    assert not cache.work(key).exists()


def make_source(folder: Path, count: int) -> Path:
    """A source of mmcv with as many ops, each with a macro of the same name."""
    ops = folder / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
    (ops / 'cpu').mkdir(parents=True)
    for number in range(count):
        text = f'#define value() {number}\nextern "C" int op_{number}() {{ return value(); }}\n'
        (ops / f'op_{number}.cpp').write_text(text)
    (ops / 'cpu' / 'nms.cpp').write_text('static int same() { return 1; }\n')
    (ops / 'cpu' / 'roi_align.cpp').write_text('static int same() { return 2; }\n')
    return ops


@pytest.mark.skipif(shutil.which('c++') is None, reason='there is no compiler')
def test_joined_files_compile_to_the_same_ops(tmp_path):
    ops = make_source(tmp_path, 23)
    assert not joining.is_joined(tmp_path)
    joining.join_sources(tmp_path)
    assert joining.is_joined(tmp_path)
    files = [*ops.glob('*.cpp'), *ops.glob('cpu/*.cpp')]
    assert sorted(str(file.relative_to(ops)) for file in files) == [
        'cpu/joined_0.cpp',
        'cpu/roi_align.cpp',
        'joined_0.cpp',
        'joined_1.cpp',
    ]
    library = tmp_path / 'ops.so'
    subprocess.run(['c++', '-shared', '-fPIC', '-o', library, *files], check=True)
    found = ctypes.CDLL(str(library))
    assert [getattr(found, f'op_{number}')() for number in range(23)] == list(range(23))


def test_what_does_not_compile_joined_is_compiled_one_by_one(site, tmp_path, capsys):
    setup = Recorder(mmcv_site(site, ops=False), wheels.WheelCache(tmp_path / 'cache'), 'required')
    make_source(tmp_path / 'sdist' / 'onedl_mmcv-2.3.6', 2)
    work, built = tmp_path / 'work', []

    def build(command, log, **_):
        if 'download' in command:
            with tarfile.open(work / 'fetched' / 'onedl_mmcv-2.3.6.tar.gz', 'w:gz') as archive:
                archive.add(tmp_path / 'sdist' / 'onedl_mmcv-2.3.6', 'onedl_mmcv-2.3.6')
            return
        built.append(joining.is_joined(work / 'source'))
        if built[-1]:
            raise console.StepError('the compiler ended', 'Look at the log')
        make_wheel(work / 'out' / 'onedl_mmcv-2.3.6.whl')

    setup.env.run = build
    assert setup.compile('onedl-mmcv==2.3.6', work).name == 'onedl_mmcv-2.3.6.whl'
    assert built == [True, False] and 'each file by itself' in capsys.readouterr().out
    shutil.rmtree(work / 'source')  # stopped then; the next run does not try it again
    assert setup.compile('onedl-mmcv==2.3.6', work) and built == [True, False, False]


def test_missing_compiler_is_named(site, tmp_path, monkeypatch):
    setup = Recorder(mmcv_site(site, ops=False), wheels.WheelCache(tmp_path), 'required')
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(console.StepError, match='no-such-compiler'):
        setup.install_mmcv()


# ---------------------------------------------------------------- what the user sees


def test_failing_command_says_all_that_is_needed(site):
    env, _ = site
    code = 'print("fine"); print("No space left on device"); raise SystemExit(3)'
    with pytest.raises(console.StepError) as caught:
        env.run([sys.executable, '-c', code], '9-test')
    report = caught.value.report('[2/8] torch')
    for text in ('[2/8] torch', 'exit code 3', 'raise SystemExit(3)', '9-test.log', 'disk is full'):
        assert text in report
    assert 'fine' in (env.notes / '9-test.log').read_text()


def test_silent_command_shows_that_time_passes(capsys):
    """The command ends only after it was silent; each look at the clock is a minute later."""
    process = subprocess.Popen(
        [sys.executable, '-c', 'print("read", input())'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    minutes, log = itertools.count(), io.StringIO()

    def now():
        minute = next(minutes)
        if minute == 2:  # made at 0, starting at 1
            process.stdin.write('this\n')
            process.stdin.close()
        return 60 * minute

    lines = environment.follow(process, log, lambda line: line.strip(), console.Status(1, now))
    assert process.wait(10) == 0
    assert lines == ['read this\n'] and log.getvalue() == 'read this\n'
    first, second, *_, last = capsys.readouterr().out.splitlines()
    assert (first, second) == ('      1:00  starting', '      2:00  starting')
    assert last.endswith(':00  read this')


def test_stopping_ends_what_the_command_started_too():
    inner = 'import sys; print("started", flush=True); sys.stdin.read(); print("survived")'
    outer = f'import subprocess, sys; subprocess.run([sys.executable, "-c", {inner!r}])'
    process = subprocess.Popen(
        [sys.executable, '-c', outer],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == 'started\n'
    environment.stop(process)
    assert process.poll() is not None
    assert process.communicate(timeout=120) == ('', None)  # a survivor would say so now


@pytest.mark.parametrize(
    ('output', 'word'),
    [
        ('NewConnectionError(...)\nERROR: No matching distribution found for torch', 'network'),
        ('ERROR: No matching distribution found for torch==99', 'TORCH='),
        ('ERROR: Could not find a version (from versions: none)', 'network'),
        ('c++: fatal error: Killed signal terminated program cc1plus', 'MAX_JOBS=1'),
        ('OSError: CUDA_HOME environment variable is not set', 'CUDA_VISIBLE_DEVICES='),
        ('something else', 'same command again'),
    ],
)
def test_hints(output, word):
    assert word in console.hint_for(output)


def test_pip_progress():
    show = console.pip_progress
    assert show('  Downloading https://host/x/torch-2.13.whl (190 MB)\n') == (
        'downloading torch-2.13.whl (190 MB)'
    )
    assert show('Installing collected packages: a, b, torch\n') == (
        'installing 3 packages, up to torch'
    )
    assert show('Collecting rich (from x)') == 'collecting rich'
    assert show('anything') is None


def test_ninja_progress():
    now = iter([0.0, 120.0])
    show = console.NinjaProgress(lambda: next(now))
    assert show('  running build_ext') is None
    assert show('  [1/78] c++ -MMD') == 'compiled 1 of 78 files (1 %)'
    assert show('  [13/78] c++ -MMD') == 'compiled 13 of 78 files (16 %), about 11 min left'
    assert show('  [78/78] c++ -MMD') == 'compiled 78 of 78 files, linking'


@pytest.mark.skipif(not shutil.which('make'), reason='needs make')
def test_make_help():
    done = subprocess.run(['make', '-C', str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in (
        'demo',
        'reproduce',
        'test',
        'install',
        'clean',
        'TASK=',
        'TORCH=',
        'PYTHON=',
        'VENV=',
    ):
        assert word in done.stdout


@pytest.mark.skipif(not shutil.which('make'), reason='needs make')
@pytest.mark.parametrize(
    ('arguments', 'message'),
    [(['TASK=pose'], 'neither segmentation'), (['PYTHON=no-python'], "'no-python' is not")],
)
def test_make_refuses_nonsense(arguments, message):
    done = subprocess.run(
        ['make', '-C', str(ROOT), 'demo', *arguments], capture_output=True, text=True
    )
    assert done.returncode and message in done.stderr
