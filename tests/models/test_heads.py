"""The head of FRSKD's segmentation form."""

from __future__ import annotations

import copy
import subprocess
import sys

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from torch import nn

from tests.stock_models import build

HEAD = dict(
    _scope_='mmseg',
    type='mmkd_plugin.FCNHead3x3',
    in_channels=6,
    in_index=0,
    channels=8,
    num_convs=1,
    concat_input=False,
    dropout_ratio=0,
    num_classes=5,
    norm_cfg=dict(type='BN'),
    align_corners=False,
)


def test_it_is_two_3x3_convolutions_with_bn_and_relu_between():
    torch.manual_seed(0)
    head = build(HEAD)
    head.init_weights()
    layers = [m for m in head.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    last, first, norm = layers  # the classifier comes first, as in the stock head
    assert (first.kernel_size, last.kernel_size) == ((3, 3), (3, 3))
    x = torch.rand(2, 6, 7, 9)
    inner = F.conv2d(x, first.weight, padding=1)
    mean, variance = inner.mean((0, 2, 3)), inner.var((0, 2, 3), unbiased=False)
    inner = (inner - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
    expected = F.conv2d(inner.relu(), last.weight, last.bias, padding=1)
    torch.testing.assert_close(head.train()([x, None]), expected)
    assert expected.shape == (2, 5, 7, 9)


def test_its_classifier_starts_as_that_of_the_stock_head():
    torch.manual_seed(0)
    head = build(HEAD)
    head.init_weights()
    assert 0.005 < head.conv_seg.weight.std() < 0.02 and not head.conv_seg.bias.any()


def test_it_learns_as_a_decode_head():
    from mmseg.structures import SegDataSample

    head = build(HEAD).train()
    label = PixelData(data=torch.zeros(1, 28, 36, dtype=torch.long))
    samples = [SegDataSample(gt_sem_seg=label, metainfo=dict(img_shape=(28, 36)))] * 2
    losses = head.loss([torch.rand(2, 6, 7, 9)], samples, None)
    losses['loss_ce'].backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


def test_it_is_copied_and_has_the_names_of_the_stock_head():
    head = build(HEAD)
    stock = build(dict(HEAD, type='FCNHead'))
    assert list(head.state_dict()) == list(stock.state_dict())
    assert isinstance(head, type(stock))
    copy.deepcopy(head).load_state_dict(head.state_dict())


def test_the_plugin_does_not_need_mmsegmentation():
    code = (
        "import sys; sys.modules['mmseg'] = None\n"
        'from mmkd_plugin.registry import MODELS\n'
        "assert MODELS.get('mmkd_plugin.FCNHead3x3')\n"
        "assert 'mmkd_plugin.losses' in sys.modules\n"
    )
    subprocess.run([sys.executable, '-c', code], check=True)
