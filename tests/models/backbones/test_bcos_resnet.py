"""The B-cos ResNet: the authors' layers in order, linear in six channels, in real models."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper
from torch import nn

from mmkd_plugin.models.backbones import BcosResNet
from mmkd_plugin.models.bcos import (
    BcosBatchNorm2d,
    BcosConv2d,
    DynamicLinear,
    explanation_mode,
    not_dynamic_linear,
    unit_filters,
)
from mmkd_plugin.taps.example import example_batch
from tests import stock_models

PIXELS = dict(mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True)
CONV = dict(type='mmkd_plugin.BcosConv2d')
NORM = dict(type='mmkd_plugin.BcosBatchNorm2d')


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def backbone(depth: int = 18, width: int = 8, **kwargs: Any) -> BcosResNet:
    torch.manual_seed(0)
    net = BcosResNet(depth, stem_channels=width, base_channels=width, **kwargs)
    net.init_weights()
    return net.double()


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, with norms that have seen data."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, BcosBatchNorm2d):
            layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
            layer.weight.data.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
    return model.eval()


# The network --------------------------------------------------------------------------------------


def by_hand(net: BcosResNet, x: torch.Tensor, bottleneck: bool) -> list[torch.Tensor]:
    """The forward written out, with the layers looked up by the authors' names."""
    part = dict(net.named_modules())

    def unit(name: str, number: int | str, x: torch.Tensor) -> torch.Tensor:
        return part[f'{name}bn{number}'](part[f'{name}conv{number}'](x))

    x = unit('', 1, torch.cat([x, 1 - x], 1))
    x = nn.functional.avg_pool2d(x, 3, 2, 1)
    maps = []
    for stage in range(1, 5):
        for number in range(len(part[f'layer{stage}'])):
            name = f'layer{stage}.{number}.'
            out = unit(name, 2, unit(name, 1, x))
            out = unit(name, 3, out) if bottleneck else out
            if f'{name}downsample' in part:
                x = part[f'{name}downsample.1'](part[f'{name}downsample.0'](x))
            x = x + out
        maps.append(x)
    return maps


@pytest.mark.parametrize('depth', [18, 50])
def test_forward(depth):
    net, x = settled(backbone(depth)), images(1, 3, 64, 96)
    expected = by_hand(net, x, depth == 50)
    for ours, theirs in zip(net(x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert [y.shape[2:] for y in expected] == [(16, 24), (8, 12), (4, 6), (2, 3)]


#: Layers and filters of the authors' networks without the classifier (torchvision's, with six
#: channels and no bias: 11.18 M, 21.28 M and 23.51 M weights with three channels).
@pytest.mark.parametrize(
    'depth, convs, parameters',
    [
        (18, 20, 11_176_512 - 4800 + 3 * 64 * 49),
        (34, 36, 21_284_672 - 8512 + 3 * 64 * 49),
        (50, 53, 23_508_032 - 26_560 + 3 * 64 * 49),
    ],
)
def test_size(depth, convs, parameters):
    net = BcosResNet(depth)
    layers = [m for m in net.modules() if isinstance(m, DynamicLinear)]
    assert sum(isinstance(m, BcosConv2d) for m in layers) == convs
    assert sum(isinstance(m, BcosBatchNorm2d) for m in layers) == convs
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert not_dynamic_linear(net) == []
    assert not any(isinstance(m, (nn.ReLU, nn.MaxPool2d)) for m in net.modules())


def test_strides_dilations_and_stages():
    net = settled(
        backbone(18, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), out_indices=(1, 2), b=1.5)
    )
    assert [tuple(y.shape[1:]) for y in net(images(1, 3, 64, 64))] == [(16, 8, 8), (32, 8, 8)]
    assert not hasattr(net, 'layer4')
    assert net.layer3[1].conv1.dilation == net.layer3[1].conv1.padding == (2, 2)
    assert all(m.b == 1.5 for m in net.modules() if isinstance(m, BcosConv2d))


def test_start_of_training():
    net = BcosResNet(18)
    net.init_weights()
    weight = net.layer4[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert all((m.weight == 1).all() for m in net.modules() if isinstance(m, BcosBatchNorm2d))


def test_norm_eval():
    for norm_eval in (False, True):
        net = backbone(norm_eval=norm_eval).train()
        before = net.bn1.running_var.clone()
        net(images(2, 3, 32, 32))
        assert torch.equal(before, net.bn1.running_var) is norm_eval
        assert net.conv1.training


def test_no_such_depth():
    with pytest.raises(ValueError, match=r'no B-cos ResNet-20; depths: 18, 34, 50, 101, 152'):
        BcosResNet(20)


@pytest.mark.parametrize(
    'x, text',
    [
        (255 * images(1, 3, 32, 32), r'3 channels from .* to 255'),
        ((images(1, 3, 32, 32) - 0.45) / 0.22, r'mean=\[0, 0, 0\], std=\[255, 255, 255\]'),
        (images(1, 6, 32, 32), r'got 6 channels'),
    ],
)
def test_images_of_another_range(x, text):
    with pytest.raises(ValueError, match=text):
        backbone()(x)


def test_colours_a_little_beyond_the_range_are_fine():
    net = backbone()
    for x in (1.5 * images(1, 3, 32, 32) - 0.2, 9 * images(1, 3, 32, 32)):
        maps = net(x)  # only the first batch is examined
        assert len(maps) == 4 and all(torch.isfinite(y).all() and y.any() for y in maps)


def test_weights_of_the_authors(tmp_path):
    """Their checkpoints have filters in ``.linear``, a classifier, and a mean in each norm."""
    trained = settled(backbone())
    theirs = {'fc.linear.weight': torch.rand(10, 64, 1, 1)}
    for name, value in trained.state_dict().items():
        convolution = value.dim() == 4
        theirs[name.replace('.weight', '.linear.weight') if convolution else name] = value
        if name.endswith('running_var'):
            theirs[name.replace('running_var', 'running_mean')] = torch.rand_like(value)
            theirs[name.replace('running_var', 'num_batches_tracked')] = torch.tensor(1)
    torch.save(theirs, tmp_path / 'resnet_18.pth')
    net = BcosResNet(
        18,
        stem_channels=8,
        base_channels=8,
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'resnet_18.pth')),
    )
    net.init_weights()
    x = images(1, 3, 64, 64)
    for ours, expected in zip(net.double().eval()(x), trained(x), strict=True):
        torch.testing.assert_close(ours, expected)


# Explanations -------------------------------------------------------------------------------------


def six_channels(model: nn.Module, run: Any) -> tuple[torch.Tensor, Any]:
    """What `add_inverse` gave in ``run()``, from where on there is a graph, and the result."""
    seen = []

    def keep(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(output.requires_grad_())
        return output

    handle = next(m for n, m in model.named_modules() if n.endswith('add_inverse'))
    handle = handle.register_forward_hook(keep)
    try:
        return run(), seen[0]
    finally:
        handle.remove()


@pytest.mark.parametrize('depth, training', [(18, False), (18, True), (50, False)])
def test_every_map_is_linear_in_the_six_channels(depth, training):
    net = settled(backbone(depth, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))).train(training)
    maps, x = six_channels(net, lambda: net(images(1, 3, 64, 64)))
    assert x.shape == (1, 6, 64, 64)
    for y in maps:
        probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).double()
        with explanation_mode(net):
            (weights,) = torch.autograd.grad(y, x, probe, retain_graph=True)
        torch.testing.assert_close((weights * x).sum(), (y * probe).sum(), rtol=1e-9, atol=1e-9)
        assert weights[:, :3].abs().sum() > 0 and weights[:, 3:].abs().sum() > 0


def unit_conv(layer: BcosConv2d, x: torch.Tensor) -> torch.Tensor:
    """The convolution of a layer alone, with filters of length one."""
    weight, place = unit_filters(layer.weight), (layer.stride, layer.padding, layer.dilation)
    return torch.conv2d(x, weight, None, *place, layer.groups)


def frozen(net: nn.Module, run: Any) -> nn.Module:
    """The linear map that the network is in ``run()``: its layers with what they multiplied by."""
    factors, linear = {}, copy.deepcopy(net)
    convs = {name: m for name, m in net.named_modules() if isinstance(m, BcosConv2d)}

    def note(name: str, layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        before = x
        if name in convs:
            before = unit_conv(layer, x)
        factors[name] = (y / before).detach()

    def multiply(name: str, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if name in convs:
            x = unit_conv(layer, x)
        return x * factors[name]

    handles = [
        layer.register_forward_hook(lambda m, args, y, name=name: note(name, m, args[0], y))
        for name, layer in net.named_modules()
        if isinstance(layer, DynamicLinear)
    ]
    run()
    for handle in handles:
        handle.remove()
    for name, layer in linear.named_modules():
        if isinstance(layer, DynamicLinear):
            layer.forward = partial(multiply, name, layer)
    return linear


@pytest.mark.parametrize('training', [False, True])
def test_the_map_is_the_same_in_every_direction(training):
    """W is no mere gradient, whose product with the image is the output as well: y(2x) = 2 y(x)."""
    net, x = settled(backbone()).train(training), images(1, 3, 64, 64)
    linear = frozen(net, lambda: net(x))
    maps, six = six_channels(net, lambda: net(x))
    direction = torch.randn(six.shape, generator=torch.Generator().manual_seed(2)).double()
    linear.add_inverse = nn.Identity()
    for y, other in zip(maps, linear(direction), strict=True):
        probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).double()
        with explanation_mode(net):
            (weights,) = torch.autograd.grad(y, six, probe, retain_graph=True)
        (plain,) = torch.autograd.grad(y, six, probe, retain_graph=True)
        expected = (other * probe).sum()
        torch.testing.assert_close((weights * direction).sum(), expected, rtol=1e-8, atol=1e-8)
        assert not torch.isclose((plain * direction).sum(), expected, rtol=1e-2)


# In OpenMMLab -------------------------------------------------------------------------------------


def net_config(width: int = 8, **kwargs: Any) -> dict:
    return dict(
        type='mmkd_plugin.BcosResNet',
        depth=18,
        stem_channels=width,
        base_channels=width,
        **kwargs,
    )


ALL_STAGES = dict(in_channels=[8, 16, 32, 64], in_index=[0, 1, 2, 3])
#: Heads of mmseg that are linear with B-cos layers, and their arguments.
HEADS = dict(
    FCNHead=dict(num_convs=1),
    PSPHead=dict(pool_scales=(1, 2)),
    ASPPHead=dict(dilations=(1, 2)),
    DepthwiseSeparableASPPHead=dict(dilations=(1, 2), c1_in_channels=8, c1_channels=4),
    UPerHead=dict(ALL_STAGES, pool_scales=(1, 2)),
    SegformerHead=ALL_STAGES,
    FPNHead=dict(in_channels=[16] * 4, in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32]),
)


def segmentor(head: str) -> nn.Module:
    return built(segmentor_config(head))


def segmentor_config(head: str) -> dict:
    """A segmentor of B-cos layers up to the classifier; Semantic FPN has a neck."""
    config = stock_models.fcn(**PIXELS)
    config['backbone'] = net_config()
    del config['decode_head']['num_convs']
    config['decode_head'].update(conv_cfg=CONV, norm_cfg=NORM, act_cfg=None, type=head)
    config['decode_head'].update(HEADS[head])
    if head == 'FPNHead':
        config['neck'] = dict(
            type='FPN',
            in_channels=[8, 16, 32, 64],
            out_channels=16,
            num_outs=4,
            conv_cfg=CONV,
            norm_cfg=NORM,
        )
    return config


def built(config: dict) -> nn.Module:
    torch.manual_seed(0)
    model = stock_models.build(config)
    model.init_weights()
    return model


def detector(kind: str = 'retinanet', norm: dict = NORM) -> nn.Module:
    config = getattr(stock_models, kind)()
    config['data_preprocessor'].update(PIXELS)
    config['backbone'] = net_config()
    config['neck'].update(conv_cfg=CONV, norm_cfg=NORM)
    config['bbox_head'].update(conv_cfg=CONV, norm_cfg=norm)
    return built(config)


@pytest.mark.parametrize('head', HEADS)
def test_a_segmentor_is_linear_up_to_the_bias_of_its_classifier(head):
    model = settled(segmentor(head)).double()
    assert not_dynamic_linear(model) == ['decode_head.conv_seg']
    scores, x = six_channels(model, lambda: model(images(1, 3, 64, 64), mode='tensor'))
    for c in range(scores.shape[1]):
        with explanation_mode(model):
            (weights,) = torch.autograd.grad(scores[0, c].sum(), x, retain_graph=True)
        bias = model.decode_head.conv_seg.bias[c] * scores[0, c].numel()
        expected = scores[0, c].sum() - bias
        torch.testing.assert_close((weights * x).sum(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    'kind, classifier, others',
    [
        ('retinanet', 'retina_cls', ['retina_reg']),
        ('fcos', 'conv_cls', ['conv_reg', 'conv_centerness']),
        ('gfl', 'gfl_cls', ['gfl_reg']),
    ],
)
def test_a_detector_is_linear_up_to_the_bias_of_its_classifier(kind, classifier, others):
    """The ReLUs of its head stay."""
    pytest.importorskip('mmcv.ops')
    model = settled(detector(kind)).double()
    assert not_dynamic_linear(model) == [f'bbox_head.{name}' for name in (classifier, *others)]
    assert any(isinstance(m, nn.ReLU) for m in model.modules())
    (scores, *_), x = six_channels(model, lambda: model(images(1, 3, 64, 64), mode='tensor'))
    for level in scores[:3]:
        with explanation_mode(model):
            (weights,) = torch.autograd.grad(level.sum(), x, retain_graph=True)
        bias = getattr(model.bbox_head, classifier).bias.sum() * level[0, 0].numel()
        torch.testing.assert_close((weights * x).sum(), level.sum() - bias, rtol=1e-8, atol=1e-8)


def test_a_norm_of_another_kind_is_named():
    pytest.importorskip('mmcv.ops')
    model = detector(norm=dict(type='GN', num_groups=4))
    assert not_dynamic_linear(model.bbox_head) == [
        'cls_convs.0.gn', 'reg_convs.0.gn', 'retina_cls', 'retina_reg',
    ]  # fmt: skip


@pytest.mark.parametrize('kind', ['FCNHead', 'FPNHead', 'RetinaNet'])
def test_a_step_of_training_and_a_prediction(kind):
    if kind == 'RetinaNet':
        pytest.importorskip('mmcv.ops')
    model = detector() if kind == 'RetinaNet' else segmentor(kind)
    inputs, samples = example_batch(model, torch.device('cpu'))
    assert inputs.min() >= 0 and 0.9 < inputs.max() <= 1
    before = copy.deepcopy(model.state_dict())
    optimizer = OptimWrapper(torch.optim.Adam(model.parameters(), lr=1e-3))
    losses = []
    for _ in range(4):
        loss, _ = model.train().parse_losses(model(inputs, samples, mode='loss'))
        optimizer.update_params(loss)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = model.state_dict()
    same = [key for key in after if torch.equal(before[key], after[key])]
    assert not [key for key in same if key.startswith(('backbone', 'neck'))]
    with torch.no_grad():
        (prediction,) = model.eval()(inputs, samples, mode='predict')
    if kind == 'RetinaNet':
        assert prediction.pred_instances.bboxes.shape[1] == 4
    else:
        assert prediction.pred_sem_seg.shape == inputs.shape[2:]


def test_other_preprocessing_is_refused_before_training():
    config = stock_models.fcn()
    config['backbone'] = net_config()
    cwd = dict(cwd=dict(tap='decode_head.conv_seg', loss=stock_models.cwd()))
    with pytest.raises(ValueError, match=r'BcosResNet takes RGB images in \[0, 1\]'):
        stock_models.distiller(ConfigDict(config), stock_models.fcn(), cwd)


# In the Distiller ---------------------------------------------------------------------------------


def taught_by_explanations(loss_weight: float) -> nn.Module:
    explain = dict(
        tap='backbone.add_inverse',
        explainer=dict(type='mmkd_plugin.BcosWeights', scores='decode_head.conv_seg'),
        loss=dict(type='mmkd_plugin.ExplanationLoss', loss_weight=loss_weight),
    )
    config = segmentor_config('FCNHead')
    return stock_models.distiller(ConfigDict(config), copy.deepcopy(config), dict(explain=explain))


def test_explaining_leaves_the_task_as_it_is():
    """One forward is learnt from and explained: gradients of the task and running variances."""
    model = taught_by_explanations(loss_weight=1e-12)
    alone = copy.deepcopy(model.student)
    inputs, samples = example_batch(alone, torch.device('cpu'))
    for one in (model, alone):
        loss, _ = one.train().parse_losses(one(inputs, samples, mode='loss'))
        loss.backward()
    for (name, ours), theirs in zip(
        model.student.named_parameters(), alone.parameters(), strict=True
    ):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)
    state = alone.state_dict()
    assert (state['backbone.bn1.running_var'] != 1).all()
    for name, ours in model.student.state_dict().items():
        torch.testing.assert_close(ours, state[name], msg=name)


def test_explanations_are_learnt():
    """The term alone falls, with a student that differs from its teacher in its weights."""
    model = taught_by_explanations(loss_weight=1).train()
    model.init_weights()
    inputs, samples = example_batch(model.student, torch.device('cpu'))
    optimizer = torch.optim.Adam(model.student.parameters(), lr=3e-3)
    seen = []
    for _ in range(12):
        loss = model(inputs, samples, mode='loss')['distill.explain.loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert 0 < seen[-1] < 0.9 * seen[0] < 2, seen
    assert not any(layer.held for layer in model.modules() if isinstance(layer, DynamicLinear))
