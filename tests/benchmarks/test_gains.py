"""What each method gains: statistics, plan and page, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from mmengine.config import ConfigDict
from PIL import Image

from benchmarks.gains import labels, overview, page, recipes, records, rows, split
from benchmarks.gains.intervals import Interval, mean_interval, ratio_interval
from benchmarks.gains.plan import (
    ALONE,
    TRIAL_SEED,
    TRIALS,
    Budget,
    Run,
    best_of,
    chosen,
    estimate,
    longer_factor,
    needs,
    on_one_machine,
    plan,
    time_ratio,
)
from benchmarks.gains.running import Place, read_score, settle, teacher_file
from benchmarks.gains.settings import digest, run_config, set_weight, test_split
from benchmarks.gains.tables import DATA, ROOT, Data, Table, find_tables
from mmkd_plugin.cli import UsageError, read_config
from tests.runs import dataset_of, make_data

T2 = 4.302653  # the 97.5 % quantile of Student's t with two degrees of freedom
test_split.__test__ = False


def test_the_interval_of_a_mean():
    found = mean_interval([1.0, 2.0, 3.0])  # standard deviation 1, standard error 1 / sqrt(3)
    half = T2 / math.sqrt(3)
    assert found == pytest.approx((2, 2 - half, 2 + half), abs=1e-5)
    assert found.verdict == 'inconclusive'
    assert mean_interval([5.0]) == (5, -math.inf, math.inf)


@pytest.mark.parametrize(
    ('values', 'verdict'),
    [
        ([4.0, 5.0, 6.0], 'helps'),
        ([-4.0, -5.0, -6.0], 'hurts'),
        ([4.0, -5.0, 6.0], 'inconclusive'),
        ([9.0], 'inconclusive'),
    ],
)
def test_the_verdict_is_that_of_the_interval(values, verdict):
    assert mean_interval(values).verdict == verdict


def test_a_share_of_a_gap_that_is_always_the_same():
    half = T2 / math.sqrt(3) / 10
    assert ratio_interval([1.0, 2.0, 3.0], [10.0] * 3) == pytest.approx(
        (0.2, 0.2 - half, 0.2 + half), abs=1e-5
    )


def test_a_share_by_hand():
    # Means 2 and 10; of the means, variances 1/3 and 4/3 and covariance -2/3.
    # p = 100 - 4/3 T^2, q = 20 + 2/3 T^2, c = 4 - 1/3 T^2, limits (q -+ sqrt(q^2 - p c)) / p.
    found = ratio_interval([1.0, 2.0, 3.0], [12.0, 10.0, 8.0])
    p, q, c = 100 - 4 / 3 * T2**2, 20 + 2 / 3 * T2**2, 4 - T2**2 / 3
    root = math.sqrt(q * q - p * c)
    assert found == pytest.approx((0.2, (q - root) / p, (q + root) / p), abs=1e-5)
    assert found.low < 0.2 < found.high


@pytest.mark.parametrize(
    ('gap', 'found'),
    [([-1.0, -2.0, -3.0], None), ([-1.0, 3.0, 2.0], (-math.inf, math.inf))],
)
def test_a_share_of_no_clear_gap(gap, found):
    share = ratio_interval([1.0, 2.0, 3.0], gap)
    assert share is None if found is None else (share.low, share.high) == found


TABLE = Table(
    Data('digit_scenes', 'DigitScenes', '*', seeds=2),
    'segmentation',
    Path('configs/small_1k.py'),
    Path('configs/large_1k.py'),
    {
        'cwd': Path('configs/cwd/cwd_large_small_1k.py'),
        'frskd': Path('configs/f/frskd_small_1k.py'),
    },
    {'cwd': 1},
    {'student': 1000, 'teacher': 1000, 'cwd': 1000, 'frskd': 1000},
)


def record(method='student', seed=0, score=30.0, weight=None, **changes) -> records.Record:
    return replace(
        records.Record(
            data='digit_scenes',
            split='val',
            task='segmentation',
            student='small_1k',
            method=method,
            config=f'configs/{method}.py',
            purpose='counted',
            weight=weight,
            seed=seed,
            length=1.0,
            metric='mIoU',
            score=score,
            val_score=score,
            student_score=None,
            teacher_score=None if method in ('teacher', 'student') else 50.0,
            seconds=100.0,
            step_seconds=0.1,
            peak_mb=500.0,
            iterations=1000,
            device='cpu',
            date='2026-01-01',
            version='1',
        ),
        **changes,
    )


def trials(method, *scores):
    return [
        record(method, TRIAL_SEED, score, weight, purpose='trial')
        for weight, score in zip(TRIALS, scores)
    ]


def test_the_plan_before_anything_is_run():
    runs = plan(TABLE, [], Budget())
    count = {
        name: sum(run.method == name for run in runs) for name in ('teacher', 'student', 'cwd')
    }
    assert count == dict(teacher=1, student=2, cwd=len(TRIALS) + 2)
    assert {run.seed for run in runs if run.purpose == 'trial'} == {TRIAL_SEED}
    counted = [run for run in runs if run.method == 'cwd' and run.purpose == 'counted']
    assert not any(run.known for run in counted)  # the trials decide their weight
    assert not any(run.known for run in runs if run.method == 'longer')
    assert needs(counted[1]) == [Run(TABLE, 'teacher'), Run(TABLE, 'student', 1)]
    assert needs(Run(TABLE, 'frskd', TRIAL_SEED, 1.0, 1.0, 'trial')) == []
    assert estimate(runs[0], []) > estimate(runs[1], []) > 0


def test_results_settle_the_rest_of_the_plan():
    done = [*trials('cwd', 35.0, 36.0, 37.0), *trials('frskd', 35.0, 35.0, None)]
    weights = {run.method: run.weight for run in plan(TABLE, done, Budget()) if run.known}
    assert (weights['cwd'], weights['frskd']) == (TRIALS[2], TRIALS[1])
    for seed in (0, 1):
        done += [record(seed=seed), record('cwd', seed, 36.0, TRIALS[2], step_seconds=0.17)]
        done += [record('frskd', seed, 36.0, TRIALS[1], step_seconds=0.104)]
    longer = [run for run in plan(TABLE, done, Budget()) if run.method == 'longer']
    assert [(run.seed, run.length) for run in longer] == [(0, 2.0), (1, 2.0)]
    assert all(run.known for run in plan(TABLE, done, Budget()))
    assert estimate(longer[0], done) == pytest.approx(200)
    assert not any(run.method == 'longer' for run in plan(TABLE, done, Budget(longer=False)))


def test_a_recipe_gets_a_trial_if_no_other_reaches_the_student():
    alone = [record(seed=seed, score=31.0) for seed in (0, 1)]
    low = [*alone, *trials('cwd', 30.9, 5.0, None)]

    def weights(done: list) -> dict[str, set]:
        runs = [run for run in plan(TABLE, done, Budget()) if run.method == 'cwd']
        return {
            purpose: {run.weight for run in runs if run.purpose == purpose}
            for purpose in ('trial', 'counted')
        }

    assert weights([*alone, *trials('cwd', 31.1, 5.0, 9.0)]) == dict(
        trial=set(TRIALS), counted={TRIALS[0]}
    )
    assert weights(low) == dict(trial={*TRIALS, 'recipe'}, counted={None})
    for score, best in ((30.8, TRIALS[0]), (30.95, 'recipe')):
        own = record('cwd', TRIAL_SEED, score, 'recipe', purpose='trial')
        assert weights([*low, own])['counted'] == {best}
        counted = [record('cwd', seed, 40.0, w) for seed in (0, 1) for w in ('recipe', TRIALS[0])]
        assert lines_of(page.text([*low, own, *counted]))['cwd'][1] == best


def test_times_of_several_machines_are_those_of_the_first():
    slow = [record('teacher', step_seconds=0.4), record(step_seconds=0.2)]
    fast = [record('teacher', step_seconds=0.1), record('cwd', 0, 40.0, 'auto', step_seconds=0.08)]
    times = [one.step_seconds for one in on_one_machine([*slow, *fast])]
    assert times == pytest.approx([0.4, 0.2, 0.4, 0.32])
    assert lines_of(page.text([*slow, *fast]))['cwd'][7] == '1.60×'
    table = replace(TABLE, data=replace(TABLE.data, seeds=1))
    assert time_ratio(table, 'cwd', 'auto', [*slow, *fast]) == pytest.approx(1.6)
    assert on_one_machine(fast[1:]) == fast[1:]


def test_a_grid_has_no_trials():
    runs = plan(TABLE, [], Budget(weights=(0.1, 'auto')))
    assert {run.purpose for run in runs} == {'counted'}
    assert [run.weight for run in runs if run.method == 'cwd'] == [0.1, 'auto'] * 2


FEW = replace(TABLE, recipes={}, few={'rest': Path('configs/u/rest_large_small_1k.py')})
FEW = replace(FEW, taught={'rest': 1}, iterations={**TABLE.iterations, 'rest': 1000})


def test_the_plan_with_few_labels():
    runs = [run for run in plan(FEW, [], Budget()) if split.share_of(run.purpose)]
    trials_ = [run for run in runs if split.is_trial(run.purpose)]
    assert [run.weight for run in trials_] == list(split.TRIED)
    assert {run.seed for run in trials_} == {TRIAL_SEED}
    counted = [run for run in runs if run not in trials_]
    assert len(counted) == 2 * len(split.FEW) * split.FEW_SEEDS
    taught = [run for run in counted if run.method == 'rest']
    assert not any(run.known for run in taught) and all(r.known for r in counted if r not in taught)
    assert needs(taught[0]) == [
        Run(FEW, 'teacher'),
        Run(FEW, 'student', 0, purpose=split.purpose_of(split.FEW[0])),
    ]
    done = [
        record('rest', TRIAL_SEED, score, weight, purpose=run.purpose)
        for run, weight, score in zip(trials_, split.TRIED, (1.0, 3.0, 2.0, 0.0))
    ]
    taught = [run for run in plan(FEW, done, Budget()) if run.method == 'rest']
    assert {run.weight for run in taught if run.purpose in map(split.purpose_of, split.FEW)} == {
        split.TRIED[1]
    }
    assert 'rest auto:12.5 1% of the labels seed 0' in {str(run)[17:] for run in taught}
    assert set(chosen(FEW, ['*/rest']).few) == {'rest'} and chosen(FEW, ['cwd']) is None


def test_the_images_that_keep_their_labels(tmp_path: Path):
    few, rest = split.chosen_images(200, 0.1, seed=3)
    assert len(few) == 20 and sorted(few + rest) == list(range(200))
    assert set(few) < set(split.chosen_images(200, 0.5, seed=3)[0])
    assert few == split.chosen_images(200, 0.1, seed=3)[0] != split.chosen_images(200, 0.1, 4)[0]
    assert len(split.chosen_images(50, 0.01, seed=0)[0]) == 1
    make_data(tmp_path)
    dataset = dict(dataset_of('mmseg'), data_root=str(tmp_path))
    recipe = next(ROOT.glob('configs/unlabelled/*fpn*digit-scenes*.py'))
    cfg = read_config(str(recipe))
    cfg.train_dataloader.dataset = dict(dataset, indices=1)
    split.keep_labels(cfg, 0.5, seed=0)
    others = cfg.model.unlabelled.dataset
    assert len(cfg.train_dataloader.dataset.indices) == 3
    assert sorted([*cfg.train_dataloader.dataset.indices, *others.indices]) == list(range(6))
    assert cfg.train_dataloader.sampler.type == 'InfiniteSampler'


def few_runs() -> list[records.Record]:
    """Two seeds with a tenth of the labels, with all of them, and the trials."""
    tenth, trial = split.purpose_of(0.1), split.purpose_of(0.1, trial=True)
    return [
        record('teacher', score=50.0),
        *(record(seed=seed, score=40.0) for seed in (0, 1)),
        *(record(seed=seed, score=20.0 + seed, purpose=tenth) for seed in (0, 1)),
        *(record('rest', seed, 36.0 + seed, 3.0, purpose=tenth) for seed in (0, 1)),
        *(record('rest', TRIAL_SEED, 35.0, weight, purpose=trial) for weight in split.TRIED),
    ]


def test_few_labels_have_their_own_section(tmp_path: Path):
    text = page.text(few_runs())
    lines = text.partition('## Few labels')[2]
    assert 'No runs are finished yet' not in lines and 'Weight: `3.0`.' in lines
    row = next(line for line in lines.splitlines() if line.startswith('| 10% | 2 |'))
    assert '20.50' in row and '36.50' in row and '+16.00' in row and '| 91% |' in row
    ordinary = text.partition('## Few labels')[0]
    assert 'rest' not in ordinary and 'Student alone: 40.00' in ordinary
    page.write(few_runs(), tmp_path / 'results.md', tmp_path)
    with Image.open(tmp_path / 'labels-digit-scenes-small-rest.png') as plot:
        assert plot.width > 400 and len(plot.convert('RGB').getcolors(2**24)) > 20
    assert 'No runs are finished yet' in page.text([])


def test_the_plot_of_few_labels_has_a_point_for_each_part(tmp_path: Path, monkeypatch):
    """1 %, 10 % and 50 % in five seeds, and the student alone with all labels."""
    runs = [record('teacher', score=50.0), *(record(seed=seed, score=40.0) for seed in range(5))]
    for share, alone in zip(split.FEW, (5.0, 20.0, 35.0), strict=True):
        purpose = split.purpose_of(share)
        for seed in range(5):
            runs.append(record(seed=seed, score=alone + seed, purpose=purpose))
            runs.append(record('rest', seed, alone + 10 + seed, 3.0, purpose=purpose))
    text = page.text(runs).partition('## Few labels')[2]
    rows = [line for line in text.splitlines() if re.match(r'\| \d+% \| 5 \|', line)]
    assert [row.split()[1] for row in rows] == ['1%', '10%', '50%']
    assert [row.split('|')[-2].strip() for row in rows] == ['42%', '80%', '118%']
    kept = []
    monkeypatch.setattr(labels.plt, 'close', kept.append)
    labels.draw(runs, 'rest', tmp_path / 'plot.png')
    found = {line.get_label(): line.get_xydata().tolist() for line in kept[0].axes[0].lines}
    assert found[labels.ALONE] == [[0.01, 7.0], [0.1, 22.0], [0.5, 37.0], [1.0, 40.0]]
    assert found[labels.WITH_REST] == [[0.01, 17.0], [0.1, 32.0], [0.5, 47.0]]
    assert found['teacher'][0][1] == 50 and (tmp_path / 'plot.png').stat().st_size > 5000


def test_choosing():
    assert best_of({0.3: 1.0, 1.0: None}) == 0.3
    assert best_of({0.3: 1.0, 1.0: 1.0, 3.0: 1.0}) == 1.0
    assert best_of({'auto:0.1': 1.0, 'auto:0.5': 2.0, 'auto:2.5': 1.0}) == 'auto:0.5'
    assert [longer_factor(ratio) for ratio in (0.9, 1.05, 1.06, 2.0, 2.01, 99)] == [
        1.0, 1.0, 1.25, 2.0, 2.5, 8.0,
    ]  # fmt: skip
    assert chosen(TABLE, []) == TABLE
    assert set(chosen(TABLE, ['digit_scenes/cw*']).recipes) == {'cwd'}
    assert set(chosen(TABLE, ['*/segmentation/*']).recipes) == {'cwd', 'frskd'}
    assert set(chosen(TABLE, ['cwd', 'frsk?']).recipes) == {'cwd', 'frskd'}
    assert chosen(TABLE, ['camvid/*']) is None


def test_every_small_recipe_has_a_table():
    found = find_tables(DATA[:1])
    count = sum(len(table.recipes) + len(table.few) for table in found)
    named = [
        path
        for path in ROOT.glob('configs/*/*digit-scenes*.py')
        if path.parent.name not in ('_base_', 'digit_scenes')
    ]
    assert count == len(named) and {table.task for table in found} == {'segmentation', 'detection'}
    assert all(table.teacher.is_file() and table.iterations['teacher'] for table in found)
    assert all('frskd' not in method for table in found for method in table.taught)
    few = {method: table for table in found for method in table.few}
    assert set(few) == {'unlabelled-logits', 'unlabelled-neck'}
    assert all(method in table.taught for method, table in few.items())
    (table,) = [table for table in found if 'multi-teacher-mean-logits' in table.recipes]
    assert table.taught['multi-teacher-mean-logits'] == 2 and table.taught['cwd-logits'] == 1


def test_several_teachers_are_one_config_with_several_seeds():
    both = replace(TABLE, taught={'cwd': 2})
    runs = [run for run in plan(both, [], Budget()) if run.method == 'teacher']
    assert [run.seed for run in runs] == [0, 1]
    assert needs(Run(both, 'cwd', TRIAL_SEED, 1.0, 1.0, 'trial')) == runs
    one = chosen(replace(both, taught={'cwd': 2, 'frskd': 1}), ['frskd'])
    assert [run.seed for run in plan(one, [], Budget()) if run.method == 'teacher'] == [0]
    assert teacher_file(both, Path('w'), 1) == Path('w/digit_scenes/large_1k_seed1.pth')
    teachers = [(Path('t.py'), Path(f'{seed}.pth')) for seed in (0, 1)]
    recipe = next(ROOT.glob('configs/multi_teacher/*digit-scenes*.py'))
    cfg = run_config(recipe, seed=0, weight='recipe', teachers=teachers)
    assert [one.checkpoint for one in cfg.model.teacher] == ['0.pth', '1.pth']


def test_recipes_that_also_run_with_a_cached_teacher(tmp_path: Path):
    (table,) = find_tables([one for one in DATA if one.name == 'camvid_zoo'])
    assert set(table.cached) == {
        f'{method}-{name}'
        for method in ('pixel-wise-logits', 'cwd-logits')
        for name in ('views8', 'whole')
    }
    assert set(table.cached) < set(table.taught) == set(table.recipes)
    assert table.cached['cwd-logits-views8'][:2] == ('--views', '8')
    assert chosen(table, []) is None and chosen(table, ['cwd-logits*', '*/segmentation/*']) is None
    assert len(chosen(table, ['camvid_zoo/*/cwd-logits*']).recipes) == 3
    place = Place(tmp_path, {})
    steps = {}
    for method in ('student', 'cwd-logits', 'cwd-logits-views8', 'cwd-logits-whole'):
        _, cfg = settle(Run(table, method, weight='recipe'), place)
        steps[method] = cfg.train_dataloader.dataset.pipeline
        assert [step.type for step in steps[method][2:6]] == [
            'RandomResize', 'RandomCrop', 'RandomFlip', 'PhotoMetricDistortion',
        ]  # fmt: skip
        assert steps[method] == steps['student']
        cached = cfg.model.teacher.get('type') if method != 'student' else None
        assert cached == ('mmkd_plugin.CachedTeacher' if method in table.cached else None)
    assert 'cwd-logits-whole/cache' in cfg.model.teacher.path
    detector = next(t for t in find_tables([DATA[3]]) if t.task == 'detection')
    _, cfg = settle(Run(detector, 'student'), place)
    assert cfg.train_dataloader.dataset.pipeline[-2].size == (128, 128)


RECIPE = next(ROOT.glob('configs/activation_boundary/*-stages_fpn_*digit-scenes*.py'))


STAGES = """
_base_ = {recipe!r}
model = dict(task=dict(schedule=dict(start=125)),
             distill=dict(activation_boundary=dict(schedule=dict(stop=125))))
"""


def test_the_config_of_a_run(tmp_path):
    stages = tmp_path / 'stages.py'
    stages.write_text(STAGES.format(recipe=str(RECIPE)))
    cfg = run_config(
        stages, seed=7, length=0.2, weight=3.0, teachers=[(Path('t.py'), Path('work/t.pth'))]
    )
    assert cfg.randomness.seed == 7 and cfg.train_cfg.max_iters == cfg.train_cfg.val_interval == 200
    assert [(one.begin, one.end) for one in cfg.param_scheduler] == [(0, 50), (50, 200)]
    assert cfg.model.task.schedule.start == 25
    term = cfg.model.distill.activation_boundary
    assert term.schedule.stop == 25
    assert term.loss.loss_weight in (3.0, [3.0] * 4)  # one for each map, if the recipe has so
    assert (cfg.model.teacher.config, cfg.model.teacher.checkpoint) == ('t.py', 'work/t.pth')
    assert test_split(cfg) == 'val'
    plain = run_config(RECIPE, seed=7, weight='recipe')
    assert plain.train_cfg.max_iters == 1000
    assert digest(plain) == digest(run_config(RECIPE, seed=7)) != digest(cfg)


@pytest.mark.parametrize(
    ('weight', 'before', 'after'),
    [
        ('recipe', dict(loss_weight=4), 4),
        (0.5, dict(loss_weight=4), 0.5),
        (3.0, dict(), 3),
        (3.0, dict(loss_weight=[1, 2]), [3, 3]),
        ('auto', dict(loss_weight=4), 'auto'),
        ('auto:0.3', dict(loss_weight=[1, 2]), dict(auto=0.3)),
    ],
)
def test_the_weight_of_a_run(weight, before, after):
    loss = ConfigDict(type='mmkd_plugin.ChannelWiseLoss', **before)
    set_weight(loss, weight)
    assert loss.loss_weight == after


def test_a_detector_that_finds_nothing_scores_nothing():
    found = {'coco/bbox_mAP': 0.21, 'coco/bbox_mAP_50': 0.4, 'data_time': 0.1}
    assert read_score(found, 'detection') == 0.21
    assert read_score({'data_time': 0.1, 'time': 0.2}, 'detection') == 0
    with pytest.raises(KeyError, match='mIoU'):  # a segmentor always has a score
        read_score({'time': 0.2}, 'segmentation')


def test_the_lines_of_finished_runs(tmp_path: Path):
    file = tmp_path / 'new' / 'runs.jsonl'
    assert records.read(file) == []
    for seed in (0, 1):
        records.append(file, record(seed=seed))
    assert records.read(file) == [record(seed=0), record(seed=1)]
    assert [json.loads(line)['seed'] for line in file.read_text().splitlines()] == [0, 1]
    file.write_text(file.read_text() + '{"data": "cut o')
    with pytest.raises(UsageError, match='line 3 is no finished run'):
        records.read(file)


#: Alone 30, 31, 32; gains of cwd 9, 10, 11; the teacher has 50.
SOME = [
    record('teacher', 0, 50.0),
    *(record(seed=seed, score=30.0 + seed) for seed in range(3)),
    *(record('cwd', s, 39.0 + 2 * s, 'recipe', step_seconds=0.19) for s in range(3)),
    *(record('nst', s, 20.0 + 2 * s, 'recipe', step_seconds=0.1) for s in range(3)),
    *(record('pair', s, (30.0, 32.0, 31.0)[s], 'recipe', step_seconds=0.1) for s in range(3)),
    *(record('wild', s, None, 'recipe') for s in range(3)),
    *(record('longer', s, 34.0 + s, length=2.0, iterations=2000) for s in range(3)),
]


def lines_of(text: str) -> dict[str, list[str]]:
    rows = [line.strip('| ').split(' | ') for line in text.splitlines() if line.startswith('| [')]
    return {row[0].partition(']')[0].strip('['): row for row in rows}


def test_the_page_says_what_the_runs_say():
    text = page.text(SOME)
    rows = lines_of(text)
    assert list(rows) == ['cwd', 'pair', 'nst', 'wild']  # the largest gain first
    cwd = rows['cwd']
    assert cwd[1:6] == ['recipe', '3', '41.00', '+10.00 [+7.52, +12.48]', cwd[5]]
    share = ratio_interval([9.0, 10.0, 11.0], [20.0, 19.0, 18.0])
    assert cwd[5] == f'{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]'
    assert cwd[6:] == ['helps', '1.90×', '+6.00 [+3.52, +8.48], 2×']
    assert rows['nst'][6:8] == ['hurts', '1.00×'] and rows['pair'][6] == 'inconclusive'
    assert 'diverged (3)' in rows['wild']
    assert 'Student alone: 31.00 [28.52, 33.48], 3 seeds.' in text
    assert '| 2000 | 3 | +4.00 [+4.00, +4.00] |' in text


def test_trials_choose_the_row_and_a_grid_has_its_own_table():
    done = [*SOME, *trials('cwd', 30.0, 31.0, 32.0)]
    done += [record('cwd', seed, 45.0, TRIALS[2]) for seed in range(3)]
    done += [record('cwd', seed, 44.0, 3.0) for seed in range(3)]
    text = page.text(done)
    assert lines_of(text)['cwd'][1] == TRIALS[2]
    assert f'| method | 3 | {TRIALS[2]} | recipe |' in text and '| cwd | +13.00 [' in text


def test_an_automatic_weight_is_compared_with_a_grid():
    grid = {0.1: 36.0, 1.0: 41.0, 10.0: 35.0, 100.0: None, 1000.0: 20.0}
    done = [r for r in SOME if r.method in ALONE]
    done += [record('cwd', 0, score, weight) for weight, score in grid.items()]
    assert 'against a grid' not in page.text([*done, record('nst', 0, 41.0, 'auto')])
    text = page.text([*done, record('cwd', 0, 40.6, 'auto')])
    assert '| cwd | 1 | +11.00 | +10.60 | yes |' in text
    assert 'in 1 of 1 cells, and is below the student alone in 0.' in ' '.join(text.split())
    text = ' '.join(page.text([*done, record('cwd', 0, 29.0, 'auto')]).split())
    assert 'in 0 of 1 cells, and is below the student alone in 1.' in text


def test_the_trials_of_all_methods_are_shown():
    students = [r for r in SOME if r.method == 'student']
    done = [record('teacher', score=51.0), *students, *trials('cwd', 30.0, 33.0, 36.0)]
    assert '## The trials' not in page.text([r for r in done if r.purpose == 'counted'])
    text = ' '.join(page.text([*done, *trials('nst', 41.0, 21.0, None)]).split())
    assert '| cwd | 31.00 | 30.00 | 33.00 | 36.00 | 51.00 |' in text
    own = record('nst', TRIAL_SEED, 25.0, 'recipe', purpose='trial')
    assert '| nst, its own 25.00 | 31.00 | 41.00 |' in page.text(
        [*done, *trials('nst', 41.0, 21.0, None), own]
    )
    assert '| nst | 31.00 | 41.00 | 21.00 | diverged | 51.00 |' in text
    assert (  # of the gap of 20: -5 and 50, 10 and -50 %, 25 % and nothing
        f'On the mean of 2 methods the trials close, of the gap between student and teacher on '
        f'this split, 22% of it with `{TRIALS[0]}` (below the student in 1), -20% of it with '
        f'`{TRIALS[1]}` (below the student in 1), 12% of it with `{TRIALS[2]}` (below the student '
        f'in 0).'
    ) in text


def test_one_seed_has_no_interval():
    rows = lines_of(page.text([r for r in SOME if r.seed == 0]))
    assert rows['cwd'][4:7] == ['+9.00', '45% [any]', 'inconclusive']


def test_the_page_and_its_plots_are_written(tmp_path: Path):
    page.write(SOME, tmp_path / 'docs' / 'results.md', tmp_path / 'docs' / 'images')
    text = (tmp_path / 'docs' / 'results.md').read_text()
    assert text == page.text(SOME) and '](images/gains-digit-scenes-small.png)' in text
    with Image.open(tmp_path / 'docs' / 'images' / 'gains-digit-scenes-small.png') as plot:
        assert plot.width > 400 and len(plot.convert('RGB').getcolors(2**24)) > 20


def test_the_page_of_the_docs_is_that_of_the_runs():
    found = records.read(ROOT / 'benchmarks' / 'results' / 'gains' / 'runs.jsonl')
    text = (ROOT / 'docs' / 'results.md').read_text(encoding='utf-8')
    assert text == page.text(found), 'write it again: python tools/reproduce.py --report'
    assert (ROOT / 'docs' / 'choosing.md').read_text(encoding='utf-8') == overview.choosing(found)
    for name, block in overview.BLOCKS.items():
        text = (ROOT / name).read_text(encoding='utf-8')
        assert text == overview.filled(text, block(found)), f'{name}: write it again, as above'
    assert all(asdict(one)['seconds'] > 0 for one in found)


def test_a_grid_of_single_runs_chooses_no_weight(tmp_path):
    """The row of a method without trials is that of `auto`, and its recipe stays as it is."""
    grid = [record('cwd', 0, 30.0 + n, w) for n, w in enumerate((0.1, 1.0, 'auto', 10.0))]
    runs = [record(), *grid]
    assert rows.tuned_weight(runs, 'cwd') == 'auto'
    assert rows.tuned_weight(runs[:2], 'cwd') == 0.1
    (tmp_path / 'configs').mkdir()
    recipe = tmp_path / 'configs' / 'cwd.py'
    line = "dict(tap='neck', loss=dict(type='L', loss_weight=3))"
    recipe.write_text(f'model = dict(distill=dict(a={line}))\n')
    recipes.write(runs, tmp_path)
    assert 'loss_weight=3)' in recipe.read_text()
    more = [record(seed=1), record('cwd', 1, 31.0, 'auto')]
    recipes.write([*runs, *more], tmp_path)
    assert "loss_weight='auto')" in recipe.read_text()


def test_recipes_ship_with_the_weight_of_their_row():
    found = records.read(ROOT / 'benchmarks' / 'results' / 'gains' / 'runs.jsonl')
    known = [row for runs in rows.groups(found) for row in rows.main_rows(runs)]
    known = [row for row in known if row.runs >= recipes.SEEDS]
    assert known
    for row in known:
        shipped, tuned = (
            run_config(ROOT / row.config, seed=0, weight=w) for w in (None, row.weight)
        )
        assert shipped.model.distill == tuned.model.distill, row.config


@pytest.mark.parametrize(
    ('before', 'weight', 'after'),
    [
        ("type='L', loss_weight=3", 'auto:0.5', "type='L', loss_weight=dict(auto=0.5)"),
        ("type='Löss', loss_weight=dict(auto=0.5)", 'auto', "type='Löss', loss_weight='auto'"),
        ("type='L', loss_weight=[1, 2]", 4.0, "type='L', loss_weight=[4.0, 4.0]"),
        ("type='L'", 'auto:12.5', "type='L', loss_weight=dict(auto=12.5)"),
        ("type='L',", 2.0, "type='L',loss_weight=2.0"),
        ("type='L', loss_weight=2.0", 2.0, "type='L', loss_weight=2.0"),
        ("type='L', loss_weight=3", 'recipe', "type='L', loss_weight=3"),
    ],
)
def test_a_recipe_gets_another_weight(before, weight, after):
    recipe = 'model = dict(task=dict(loss_weight=1), distill=dict(\n a=dict(loss=dict({}))))\n'
    assert recipes.weighted(recipe.format(before), weight) == recipe.format(after)


def test_a_recipe_must_write_its_loss():
    with pytest.raises(ValueError, match='the term a inherits its loss'):
        recipes.weighted("model = dict(distill=dict(a=dict(tap='neck')))", 'auto')


def test_the_short_tables():
    real = [replace(one, data='camvid', split='test') for one in SOME]
    real.append(replace(record('teacher', score=50.0), data='camvid', split='test'))
    (line,) = overview.real_table([*SOME, *real]).splitlines()[2:]
    assert line.startswith('| CamVid | mIoU, test | 31.00 | 41.00 | 50.00 | +10.00 [+7.52, +12.48]')
    assert line.endswith('| [cwd](configs/cwd.py) |')
    lines = overview.matrix(real).splitlines()
    assert lines[2] == '| cwd | **+10.0** [+7.5, +12.5], helps, recipe |'
    assert lines[4:] == ['| pair | +0.0, inconclusive |', '| wild | diverged |']
    text = overview.choosing(real)
    assert '| [cwd](../configs/cwd.py) | recipe | +10.00 [+7.52, +12.48] | 1.90× |' in text
    for words in (
        'nothing: pair (+0.0).', 'the student alone: nst (-9.0).', 'Diverged: wild.'
    ):  # fmt: skip
        assert words in text
    for seeds in ((0,), (0, 1)):
        few = [one for one in real if one.seed in seeds]
        assert overview.real_table(few) == 'No runs are finished yet.\n'


def test_a_block_needs_its_marks():
    page_of = 'a\n<!-- gains: written by tools/reproduce.py -->\nold\n<!-- /gains -->\nb\n'
    assert overview.filled(page_of, 'new\n') == page_of.replace('old', 'new')
    with pytest.raises(ValueError, match='two marks'):
        overview.filled('a\n', 'new\n')


def test_an_interval_without_limits_is_written_without():
    assert rows.signed(Interval(1.0, -math.inf, math.inf)) == '+1.00'
