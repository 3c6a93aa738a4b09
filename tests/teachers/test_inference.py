"""How a teacher computes: options, the choice for each device, and how much its maps change."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmkd_plugin.models.bcos import BcosBatchNorm2d, BcosConv2d
from mmkd_plugin.registry import MODELS
from mmkd_plugin.taps import Tap, as_list
from mmkd_plugin.teachers import inference
from mmkd_plugin.teachers.inference import Inference, best_for, distance, fold, foldable
from mmkd_plugin.teachers.online import OnlineTeacher
from tests import stock_models
from tests.teaching import prepare

CPU = torch.device('cpu')
HALF, FULL = dict(precision='bf16'), dict(precision='fp32', channels_last=False, fuse_conv_bn=False)
LOGITS = 'decode_head.conv_seg'


@pytest.fixture(autouse=True)
def users_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here teachers compute as for users; ``conftest.py`` makes them exact elsewhere."""
    monkeypatch.setattr(inference, 'best_for', best_for)


def trained(config: dict, seed: int = 0) -> nn.Module:
    """A model whose batch norms are not those of a new one."""
    torch.manual_seed(seed)
    model = stock_models.build(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, 0, 0.1)
    return model


def prepared(config: dict, *taps: str, **options) -> tuple[OnlineTeacher, list[Tap]]:
    teacher = OnlineTeacher(config, None, inference=options)
    teacher.model.load_state_dict(trained(config).state_dict())
    taps = [Tap.parse(tap) for tap in taps]
    prepare(teacher, teacher.model.data_preprocessor, taps)
    return teacher, taps


def images(seed: int = 1, *size: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(2, 3, *(size or (64, 96)))


# Options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            dict(precision='bfloat16'),
            r"teacher 't': inference: precision must be 'auto' or one of 'fp32', 'bf16', 'fp16', "
            r"got 'bfloat16'; did you mean 'bf16'\?",
        ),
        (
            dict(precison='fp32'),
            r'has an unknown key `precison`; did you mean `precision`\? \(known: precision, '
            r'channels_last, fuse_conv_bn, compile\)',
        ),
        (dict(compile='yes'), r"compile must be True, False or 'auto', got 'yes'"),
        (dict(channels_last=1), r"channels_last must be True, False or 'auto', got 1"),
        ('fp32', r"inference: expected dict\(precision='fp32', ...\), got 'fp32'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        OnlineTeacher(stock_models.fcn(), None, name='t', inference=options)


@pytest.mark.parametrize(
    ('flags', 'precision', 'why'),
    [
        ({'avx2', 'avx512_bf16'}, 'bf16', 'this CPU has bf16 arithmetic'),
        ({'amx_bf16'}, 'bf16', 'this CPU has bf16 arithmetic'),
        ({'avx2', 'avx512f'}, 'fp32', 'this CPU has no bf16 arithmetic'),
    ],
)
def test_what_is_chosen_on_a_cpu(monkeypatch, flags, precision, why):
    monkeypatch.setattr(inference, 'cpu_flags', lambda: flags)
    assert Inference().on(CPU) == (Inference(precision, True, True, False), why)


@pytest.mark.parametrize(
    ('capability', 'precision'),
    [((9, 0), 'bf16'), ((8, 0), 'bf16'), ((7, 5), 'fp16'), ((6, 1), 'fp32')],
)
def test_what_is_chosen_on_a_gpu(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda _: capability)
    chosen, _ = Inference().on(torch.device('cuda'))
    assert chosen == Inference(precision, precision != 'fp32', True, False)


def test_what_the_config_says_is_done():
    everything = Inference('fp16', False, False, True)
    assert everything.on(CPU) == (everything, 'as the config says')
    assert Inference('fp32').on(CPU)[0] == Inference('fp32', True, True, False)
    assert Inference('bf16').on(CPU)[0] == Inference('bf16', True, True, False)
    assert Inference('bf16').where_differentiated.on(CPU)[0].precision == 'bf16'
    assert Inference().where_differentiated.on(CPU)[0] == Inference('fp32', False, True, False)


# Values -------------------------------------------------------------------------------------------

TAPPED = [
    ('pspnet', [LOGITS, 'backbone', 'backbone.layer4@pre_relu', 'decode_head.bottleneck.bn']),
    ('fcn', [LOGITS, 'decode_head.convs.0.conv', 'backbone.layer3.0.bn2@input']),
    ('segformer', [LOGITS, 'backbone']),
    ('retinanet', ['neck', 'bbox_head.retina_cls', 'bbox_head.cls_convs.0.conv']),
    ('gfl', ['neck', 'bbox_head[0]']),
    ('faster_rcnn', ['neck', 'rpn_head.rpn_cls']),
]


@pytest.mark.parametrize(('name', 'taps'), TAPPED)
def test_folded_batch_norms_change_nothing_that_is_read(name, taps):
    config, x = getattr(stock_models, name)(16), images()
    teacher, taps = prepared(config, *taps, precision='fp32')
    exact, _ = prepared(config, *map(str, taps), **FULL)
    assert 'fused into their convolutions' in teacher.work()
    assert 'fused' not in exact.work()
    got, expected = teacher.read(x, None, taps), exact.read(x, None, taps)
    assert distance(got, expected) < 1e-5


@pytest.mark.parametrize(('name', 'taps'), TAPPED)
def test_bf16_moves_maps_little(name, taps):
    config, x = getattr(stock_models, name)(16), images()
    teacher, taps = prepared(config, *taps, **HALF)
    exact, _ = prepared(config, *map(str, taps), **FULL)
    got, expected = teacher.read(x, None, taps), exact.read(x, None, taps)
    assert 1e-4 < distance(got, expected) < 2e-2
    for tap in taps:
        for a, b in zip(as_list(got[tap]), as_list(expected[tap]), strict=True):
            assert a.shape == b.shape and a.dtype == torch.float32 and a.is_contiguous()


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='mmkd_plugin.ChannelWiseLoss', tau=4),
        dict(type='mmkd_plugin.ChannelWiseLoss', tau=1),
        dict(type='mmkd_plugin.PixelWiseLoss', tau=1),
    ],
)
@pytest.mark.parametrize('name', ['pspnet', 'fcn', 'segformer'])
def test_bf16_targets_diverge_by_less_than_a_thousandth_of_the_loss(name, loss):
    config, x = getattr(stock_models, name)(16), images()
    teacher, (tap,) = prepared(config, LOGITS, **HALF)
    exact, _ = prepared(config, LOGITS, **FULL)
    student = trained(getattr(stock_models, name)(16), seed=9).eval()(x, mode='tensor')
    got, expected = teacher.read(x, None, [tap])[tap], exact.read(x, None, [tap])[tap]
    compare = MODELS.build(loss)
    assert 0 < compare(got, expected) < 1e-3 * compare(student, expected)


def test_exact_is_exact_even_where_the_run_uses_mixed_precision():
    teacher, (tap,) = prepared(stock_models.pspnet(), LOGITS, **FULL)
    x = images()
    expected = teacher.model(x, mode='tensor')
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(teacher.read(x, None, [tap])[tap], expected)


def test_mixed_precision_gets_half_precision_maps():
    teacher, (tap,) = prepared(stock_models.pspnet(), LOGITS, **HALF)
    alone = teacher.read(images(), None, [tap])[tap]
    with torch.autocast('cpu', torch.bfloat16):
        mixed = teacher.read(images(), None, [tap])[tap]
    assert alone.dtype == torch.float32 and mixed.dtype == torch.bfloat16
    assert torch.equal(alone, mixed.float()) and mixed.is_contiguous()


# Batch norms --------------------------------------------------------------------------------------


def test_only_lone_pairs_are_folded():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ('plain', 'twice', 'shared', 'tapped', 'bare'):
                self.add_module(name, nn.Conv2d(4, 4, 1))
                self.add_module(f'{name}_bn', nn.BatchNorm2d(4))
            self.other_bn = nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.plain_bn(self.plain(x))
            x = self.twice_bn(self.twice(x)) + self.twice(x)
            x = self.shared_bn(self.shared(x)) + self.other_bn(self.shared(x))
            seen = self.tapped(x)
            return seen, self.tapped_bn(seen) + self.bare_bn(self.bare(x).relu())

    net = Net().eval()
    x = torch.rand(1, 4, 3, 3)
    assert foldable(net, lambda: net(x)) == [(net.plain, net.plain_bn)]


def test_folding_keeps_the_batch_norms_and_can_be_undone():
    net = trained(stock_models.fcn()).eval()
    x = images()
    before, expected = copy.deepcopy(net.state_dict()), net(x, mode='tensor')
    with torch.no_grad():
        pairs = foldable(net, lambda: [net(x, mode='tensor')])
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm for _, norm in pairs} == set(norms)
    undo = fold(pairs)
    after = net.state_dict()
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(after[f'{name}.weight'], before[f'{name}.weight'])
    torch.testing.assert_close(net(x, mode='tensor'), expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(net.backbone.conv1.weight, before['backbone.conv1.weight'])
    undo()
    assert torch.equal(net(x, mode='tensor'), expected)
    assert list(net.state_dict()) == list(before)


def test_a_teacher_can_be_prepared_again():
    teacher, (tap,) = prepared(stock_models.pspnet(), LOGITS, **HALF)
    before = teacher.read(images(), None, [tap])[tap]
    prepare(teacher, teacher.model.data_preprocessor, [tap])
    assert torch.equal(teacher.read(images(), None, [tap])[tap], before)


class Skipping(BaseModel):
    """The output of its convolution also bypasses the batch norm, which no hook sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.end = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Identity()
        self.bn.running_mean.fill_(0.5)
        self.bn.running_var.fill_(4)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.conv(inputs)
        return self.end(x + self.bn(x))


def test_what_would_change_a_map_is_not_folded():
    MODELS.register_module(module=Skipping, force=True)
    teacher = OnlineTeacher(
        dict(type='mmkd_plugin.Skipping'), None, inference=dict(FULL, fuse_conv_bn=True)
    )
    tap, x = Tap.parse('end'), images()
    expected = teacher.model(x)
    prepare(teacher, teacher.model.data_preprocessor, [tap])
    assert 'batch norms not fused, which would change its maps' in teacher.work()
    assert torch.equal(teacher.read(x, None, [tap])[tap], expected)


def test_bcos_layers_are_left_alone():
    layers = [BcosConv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), BcosBatchNorm2d(4)]
    net = nn.Sequential(*layers).eval()
    assert foldable(net, lambda: [net(images())]) == []


def test_losses_still_find_the_batch_norms():
    distill = dict(
        ofd=dict(
            tap='backbone.layer3@pre_relu',
            connector=dict(type='mmkd_plugin.ConvConnector', norm=True),
            loss=dict(type='mmkd_plugin.OverhaulLoss'),
        )
    )
    margins = []
    for options in (FULL, HALF):
        teacher = dict(config=stock_models.pspnet(16), checkpoint=None, inference=options)
        model = stock_models.distiller(stock_models.pspnet(), teacher, distill)
        assert model.distill['ofd'].norms.names == ['backbone.layer3.1.bn2']
        calls = stock_models.calls_of(model.distill['ofd'].loss)
        model(*stock_models.batch(model), mode='loss')
        margins.append(calls[0][1]['margin'])
    assert torch.equal(*margins)


# What does not work -------------------------------------------------------------------------------


class Picky(BaseModel):
    """It works in full precision only."""

    def __init__(self, huge: bool = False) -> None:
        super().__init__()
        self.huge, self.conv, self.end = huge, nn.Conv2d(3, 4, 1), nn.Identity()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.conv(inputs)
        if x.dtype != torch.float32 and not self.huge:
            raise TypeError('no kernel for this type')
        return self.end(x * 1e38 * 1e38 * 0 if x.dtype != torch.float32 else x)


@pytest.mark.parametrize(
    ('huge', 'said'),
    [(False, 'TypeError: no kernel for this type'), (True, 'its maps are not finite')],
)
def test_half_precision_that_fails(monkeypatch, huge, said):
    MODELS.register_module(module=Picky, force=True)
    monkeypatch.setattr(inference, 'cpu_flags', lambda: {'avx512_bf16'})
    config, tap = dict(type='mmkd_plugin.Picky', huge=huge), Tap.parse('end')
    teacher = OnlineTeacher(config, None)
    prepare(teacher, teacher.model.data_preprocessor, [tap])
    assert f'in fp32 (not in bf16: {said})' in teacher.work()
    assert teacher.forward.inference == Inference('fp32', True, True, False)
    teacher = OnlineTeacher(config, None, name='t', inference=HALF)
    with pytest.raises(
        ValueError, match=rf"teacher 't' does not run with precision='bf16': {said}"
    ):
        prepare(teacher, teacher.model.data_preprocessor, [tap])


class Coarse(BaseModel):
    """In half precision it gives other maps, as convolutions of some libraries do on some CPUs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.end = nn.Conv2d(3, 4, 1), nn.Identity()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.conv(inputs)
        return self.end(x if x.dtype == torch.float32 else 1.25 * x)


def test_half_precision_that_changes_the_maps(monkeypatch, log):
    MODELS.register_module(module=Coarse, force=True)
    monkeypatch.setattr(inference, 'cpu_flags', lambda: {'amx_bf16'})
    config, tap = dict(type='mmkd_plugin.Coarse'), Tap.parse('end')
    teacher = OnlineTeacher(config, None)
    prepare(teacher, teacher.model.data_preprocessor, [tap])
    assert 'in fp32 (not in bf16: its maps would change by 25%)' in teacher.work()
    assert not [text for text in log.warnings if 'bf16' in text]
    teacher = OnlineTeacher(config, None, name='t', inference=HALF)
    prepare(teacher, teacher.model.data_preprocessor, [tap])
    assert 'in bf16 (as the config says; its maps change by 25%)' in teacher.work()
    (said,) = [text for text in log.warnings if 'bf16' in text]
    assert "teacher 't' has precision='bf16', and its maps change by 25%" in said.lower()


# What runs, and what is kept ----------------------------------------------------------------------


def test_nothing_runs_after_the_last_tap_and_never_a_loss(monkeypatch):
    teacher, (third, logits) = prepared(stock_models.pspnet(), 'backbone.layer3', LOGITS, **HALF)
    monkeypatch.setattr(teacher.model, 'loss', None)
    ran = []
    for name, module in teacher.model.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    teacher.read(images(), None, [third])
    assert ran[-1] == 'backbone.layer3'
    ran.clear()
    teacher.read(images(), None, [third, logits])
    assert ran[-1] == LOGITS


@pytest.mark.parametrize(('name', 'taps'), TAPPED)
@pytest.mark.parametrize('options', [{}, HALF, FULL])
def test_a_forward_asks_for_no_value(name, taps, options):
    """So on a GPU the student's work is launched, and its data moved, while the teacher runs."""
    config = getattr(stock_models, name)(16)
    teacher, taps = prepared(config, *taps, **options)
    preprocessor = copy.deepcopy(teacher.model.data_preprocessor)
    preprocessor.register_buffer('mean', preprocessor.mean + 10)  # the images are converted too
    prepare(teacher, preprocessor, taps)
    teacher.model.to('meta')
    x = images().to('meta')
    maps = teacher.read(x, None, taps)
    assert all(y.is_meta and len(y) == 2 for tap in taps for y in as_list(maps[tap]))


@pytest.fixture
def eager_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile without its C++ compiler: graphs are taken, and run as they are."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda f, options: compile_(f, backend='eager'))


@pytest.mark.parametrize(
    ('name', 'taps', 'parts', 'last'),
    [
        ('pspnet', [LOGITS], ['backbone', 'decode_head.psp_modules'], LOGITS),
        (
            'pspnet',
            ['backbone.layer3@pre_relu'],
            ['backbone.stem', 'backbone.layer1', 'backbone.layer2'],
            'backbone.layer3.1.conv2',
        ),
        ('retinanet', ['neck'], ['backbone', 'neck'], 'neck'),
    ],
)
def test_what_is_compiled_lies_between_the_taps(eager_backend, name, taps, parts, last):
    config, x = getattr(stock_models, name)(), images()
    teacher, taps = prepared(config, *taps, **HALF, compile=True)
    plain, _ = prepared(config, *map(str, taps), **HALF)
    assert f'{len(teacher.forward.compiled)} parts compiled' in teacher.work()
    names = {module: n for n, module in teacher.model.named_modules()}
    assert {*parts} <= {names[module] for module in teacher.forward.compiled}
    assert not any(
        tap.path.startswith(f'{names[m]}.') for m in teacher.forward.compiled for tap in taps
    )
    assert distance(teacher.read(x, None, taps), plain.read(x, None, taps)) < 1e-2
    ran = []
    for module in teacher.model.modules():  # compiled parts run their hooks elsewhere
        if not any(module is m for part in teacher.forward.compiled for m in part.modules()):
            module.register_forward_hook(lambda m, *_: ran.append(names[m]))
    for part in teacher.forward.compiled:
        part.register_forward_hook(lambda m, *_: ran.append(names[m]))
    teacher.read(x, None, taps)
    assert ran[-1] == last or last not in names
    assert not any('forward' in vars(module) for module in teacher.forward.compiled)


def test_where_nothing_can_be_compiled_it_runs_as_it_is(monkeypatch, log):
    def broken(*_, **__):
        raise RuntimeError('no compiler\nand much more')

    monkeypatch.setattr(torch, 'compile', lambda *_, **__: broken)
    teacher, (tap,) = prepared(stock_models.pspnet(), LOGITS, **HALF, compile=True)
    assert log.warnings[1:] == ["teacher 'teacher' is not compiled: RuntimeError: no compiler"]
    assert teacher.work().endswith(', not compiled') and not teacher.forward.inference.compile
    assert teacher.read(images(), None, [tap])[tap].isfinite().all()


class Made(TorchDispatchMode):
    """Keeps weak references to the storages of all tensors that operations give."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[StorageWeakRef, tuple[int, int]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_flatten(out)[0] if isinstance(x, torch.Tensor)]
        for storage in [x.untyped_storage() for x in tensors]:
            self.storages[StorageWeakRef(storage)] = storage.data_ptr(), storage.nbytes()
        return out

    def alive(self) -> dict[int, int]:
        """Addresses and bytes of those that still exist."""
        return dict(found for ref, found in self.storages.items() if not ref.expired())


@pytest.mark.parametrize('options', [FULL, HALF])
@pytest.mark.parametrize(
    ('name', 'tap'), [('pspnet', LOGITS), ('retinanet', 'neck'), ('segformer', LOGITS)]
)
def test_nothing_but_the_tapped_maps_stays(name, tap, options):
    teacher, (tap,) = prepared(getattr(stock_models, name)(), tap, **options)
    x, made = images(), Made()
    with made:
        maps = as_list(teacher.read(x, None, [tap])[tap])
    held = {m.untyped_storage().data_ptr() for m in maps}
    weights = {p.untyped_storage().data_ptr() for p in teacher.model.parameters()}
    assert made.alive().keys() - weights - {x.untyped_storage().data_ptr()} == held
    assert not any(m.requires_grad for m in maps)


@pytest.mark.parametrize('options', [FULL, HALF])
def test_the_student_runs_beside_the_tapped_maps_alone(options):
    teacher = dict(config=stock_models.pspnet(16), checkpoint=None, inference=options)
    distill = dict(
        cwd=dict(tap=LOGITS, loss=stock_models.cwd()),
        at=dict(tap='backbone.layer3', loss=dict(type='mmkd_plugin.AttentionLoss')),
    )
    model = stock_models.distiller(stock_models.pspnet(), teacher, distill).train()
    inputs, samples = stock_models.batch(model)
    made, alive = Made(), {}
    model.student.backbone.register_forward_pre_hook(lambda *_: alive.update(made.alive()))
    with made:
        model(inputs, samples, mode='loss')
    logits, features = 2 * 5 * 16 * 16 * 4, 2 * 64 * 16 * 16 * 4
    assert sorted(alive.values()) == [logits, features]


# Where it is differentiated -----------------------------------------------------------------------


def test_explanations_and_gradients_are_in_full_precision(monkeypatch):
    monkeypatch.setattr(inference, 'cpu_flags', lambda: {'avx512_bf16'})
    x = images()
    results = {}
    for name, options in dict(exact=FULL, fastest={}, half=HALF).items():
        teacher, (features, logits) = prepared(
            stock_models.pspnet(16), 'decode_head.bottleneck', LOGITS, **options
        )
        values = teacher.read(x, None, [features, logits], on_path=[features])
        (gradient,) = torch.autograd.grad(values[logits].float().square().sum(), values[features])
        results[name] = gradient.float()
        assert teacher.forward.inference.precision == ('fp32' if name == 'exact' else 'bf16')
    size = results['exact'].norm()
    assert (results['fastest'] - results['exact']).norm() < 1e-5 * size
    assert 1e-4 * size < (results['half'] - results['exact']).norm() < 5e-2 * size


# Whole models -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'tap'), [('pspnet', LOGITS), ('segformer', LOGITS), ('retinanet', 'neck')]
)
@pytest.mark.parametrize('options', [None, HALF, dict(precision='fp16')])
def test_a_step_with_each(name, tap, options):
    config = getattr(stock_models, name)
    teacher = dict(config=config(16), checkpoint=None, inference=options)
    model = stock_models.distiller(
        config(), teacher, dict(cwd=dict(tap=tap, loss=stock_models.cwd()))
    ).train()
    assert list(model.state_dict()) == list(stock_models.build(config()).state_dict())
    losses = model(*stock_models.batch(model), mode='loss')
    total, log = model.parse_losses(losses)
    total.backward()
    assert log['distill.cwd.loss'] > 0 and torch.isfinite(total)
    assert all(p.grad is None for p in model.teachers['teacher'].model.parameters())


class Ordered(BaseModel):
    """It takes images in one layout only, as deformable convolutions do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.end = nn.Conv2d(3, 4, 1), nn.Identity()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if not inputs.is_contiguous():
            raise RuntimeError('input must be contiguous')
        return self.end(self.conv(inputs))


@pytest.mark.parametrize(
    ('flags', 'precision'), [(frozenset(), 'fp32'), (frozenset({'avx512_bf16'}), 'bf16')]
)
def test_a_layout_that_fails_is_given_up_before_training(monkeypatch, flags, precision):
    MODELS.register_module(module=Ordered, force=True)
    monkeypatch.setattr(inference, 'cpu_flags', lambda: flags)
    config, tap = dict(type='mmkd_plugin.Ordered'), Tap.parse('end')
    teacher = OnlineTeacher(config, None)
    prepare(teacher, teacher.model.data_preprocessor, [tap])
    assert 'not channels_last: RuntimeError: input must be contiguous' in teacher.work()
    assert teacher.forward.inference == Inference(precision, False, True, False)
    assert teacher.read(images(), None, [tap])[tap].shape == (2, 4, 64, 96)
    teacher = OnlineTeacher(config, None, name='t', inference=dict(channels_last=True))
    with pytest.raises(ValueError, match="teacher 't' does not run with channels_last=True: Runt"):
        prepare(teacher, teacher.model.data_preprocessor, [tap])


def test_a_layout_is_tried_on_two_images():
    config = stock_models.pspnet()  # DMNet reshapes maps in a way that works for one image alone
    config['decode_head'].update(type='DMHead', filter_sizes=(1, 3), fusion=True)
    del config['decode_head']['pool_scales']
    teacher = OnlineTeacher(config, None)
    tap = Tap.parse('decode_head.conv_seg')
    prepare(teacher, teacher.model.data_preprocessor, [tap])
    assert 'not channels_last: RuntimeError: view size is not compatible' in teacher.work()
    assert len(teacher.read(images(), None, [tap])[tap]) == 2


class Lonely(Ordered):
    """It takes one image at a time."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if len(inputs) > 1:
            raise RuntimeError('one image, please')
        return self.end(self.conv(inputs))


def test_a_teacher_of_single_images_is_tried_on_one():
    MODELS.register_module(module=Lonely, force=True)
    teacher, tap = OnlineTeacher(dict(type='mmkd_plugin.Lonely'), None), Tap.parse('end')
    prepare(teacher, teacher.model.data_preprocessor, [tap])
    assert teacher.read(images()[:1], None, [tap])[tap].shape == (1, 4, 64, 96)
