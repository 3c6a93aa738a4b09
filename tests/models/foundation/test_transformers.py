"""FoundationModel with backbones of transformers, on weights that the tests save."""

from __future__ import annotations

import json
import os
import pickle
import socket
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from torch import Tensor

from mmkd_plugin import FoundationModel
from mmkd_plugin.checkpoint import CheckpointError
from mmkd_plugin.taps import Tap
from mmkd_plugin.teachers import OnlineTeacher
from tests.models.foundation.weights import KINDS, normalised, plain, save, shown
from tests.stock_models import build, fcn
from tests.teaching import prepare, taught

pytest.importorskip('transformers', reason='transformers is an option of the user')
pytestmark = pytest.mark.filterwarnings('ignore')

TAPS = [Tap('maps'), Tap('tokens'), Tap('summary')]


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('weights')


def model(kind: str, root: Path, **kwargs) -> FoundationModel:
    return FoundationModel('transformers', save(kind, root), **kwargs).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize('kind, extra', [('dinov2', 1), ('dinov3', 4), ('siglip', 0)])
def test_maps_are_the_tokens_of_a_plain_call(kind, extra, root, images):
    maps, tokens, summary = shown(model(kind, root, blocks=[0, -1]), images)
    if kind == 'dinov2':  # patches of 14 pixels, at the stride of students
        options = dict(mode='bicubic', antialias=True)
        images = F.interpolate(images, (56, 84), **options)
    more = dict(interpolate_pos_encoding=True) if kind == 'siglip' else {}
    expected = plain(kind)(pixel_values=images, output_hidden_states=True, **more)
    norm = {'dinov2': 'layernorm', 'dinov3': 'norm', 'siglip': 'post_layernorm'}[kind]
    inner = getattr(plain(kind), 'vision_model', plain(kind))  # of SigLIP in older transformers
    blocks = [getattr(inner, norm)(x) for x in expected.hidden_states[1:]]
    torch.testing.assert_close(blocks[-1], expected.last_hidden_state)
    for found, block in zip(maps, blocks, strict=True):
        grid = block[:, extra:].transpose(1, 2).reshape(2, 32, 4, 6)
        torch.testing.assert_close(found, grid)
    torch.testing.assert_close(tokens, expected.last_hidden_state[:, extra:])
    torch.testing.assert_close(summary, expected.pooler_output)


@torch.no_grad()
def test_siglip2_gets_its_patches_in_order(root, images):
    maps, _, summary = shown(model('siglip2', root), images)
    cells = [
        images[:, :, a : a + 16, b : b + 16] for a in range(0, 64, 16) for b in range(0, 96, 16)
    ]
    patches = torch.stack([x.permute(0, 2, 3, 1).flatten(1) for x in cells], 1)
    shapes, mask = torch.tensor([[4, 6]] * 2), torch.ones(2, 24, dtype=torch.long)
    expected = plain('siglip2')(
        pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes
    )
    grid = expected.last_hidden_state.transpose(1, 2).reshape(2, 32, 4, 6)
    torch.testing.assert_close(maps[0], grid)
    torch.testing.assert_close(summary, expected.pooler_output)


@torch.no_grad()
def test_sam_takes_its_own_size_and_padding_is_cut_off(root, images):
    maps, tokens, summary = shown(model('sam', root, blocks=[0, -1]), images)
    large = F.interpolate(images, (64 * 16 // 12, 128), mode='bicubic', antialias=True)
    assert [tuple(x.shape) for x in maps] == [(2, 32, 6, 8), (2, 16, 6, 8)]
    assert tokens.shape == (2, 48, 16)
    padded = F.pad(images, (0, 0, 0, 8))  # 72 × 96 pixels are 6 × 8 positions of 12
    large = F.interpolate(padded, (96, 128), mode='bicubic', antialias=True)
    expected = plain('sam')(pixel_values=F.pad(large, (0, 0, 0, 32)), output_hidden_states=True)
    torch.testing.assert_close(maps[1], expected.last_hidden_state[:, :, :6])
    block = expected.hidden_states[1].permute(0, 3, 1, 2)
    torch.testing.assert_close(maps[0], block[:, :, :6])
    torch.testing.assert_close(summary, maps[1].mean((2, 3)))


@torch.no_grad()
def test_stages_of_a_convolutional_network(root, images):
    maps, tokens, summary = shown(model('dinov3-convnext', root, blocks=[1, 3]), images)
    expected = plain('dinov3-convnext')(pixel_values=images, output_hidden_states=True)
    torch.testing.assert_close(maps[0], expected.hidden_states[2])
    assert [tuple(x.shape[1:]) for x in maps] == [(12, 8, 12), (24, 2, 3)]
    assert tokens.shape == (2, 6, 24) and summary.shape == (2, 24)


@torch.no_grad()
def test_sam2_shows_the_levels_of_its_neck(root, images):
    """Its file holds a decoder of masks too; any size goes, in whole windows of 32 pixels."""
    import transformers

    inner = plain('sam2')  # older versions have none
    whole = transformers.Sam2Model(transformers.Sam2Config(vision_config=inner.config))
    whole.vision_encoder.load_state_dict(inner.state_dict())
    whole.save_pretrained(root / 'whole-sam2')
    expected = plain('sam2')(pixel_values=images).fpn_hidden_states
    for path in (save('sam2', root), str(root / 'whole-sam2')):
        one = FoundationModel('transformers', path, blocks=[0, 1, 2]).eval()
        maps, tokens, summary = shown(one, images)
        assert one.stride == 32 and [x.shape[2:] for x in maps] == [(16, 24), (8, 12), (4, 6)]
        for found, level in zip(maps, expected, strict=True):
            torch.testing.assert_close(found, level)
        torch.testing.assert_close(tokens, maps[2].flatten(2).transpose(1, 2))
        torch.testing.assert_close(summary, maps[2].mean((2, 3)))
    odd = shown(one, images[:, :, :45, :70])[0]
    assert [x.shape[2:] for x in odd] == [(12, 18), (6, 9), (3, 5)]
    with pytest.raises(ValueError, match='there is no block 3'):
        FoundationModel('transformers', path, blocks=[3])


@torch.no_grad()
def test_radio_normalises_by_itself(root, images):
    """Its class and register tokens are no part of the map; the summary joins class tokens."""
    folder = Path(save('radio', root))
    said = dict(do_normalize=False, do_rescale=True)
    (folder / 'preprocessor_config.json').write_text(json.dumps(said))
    one = model('radio', root, blocks=[0, 1])
    assert one.encoder.mean == [0] * 3 and one.encoder.std == [255] * 3
    maps, tokens, summary = shown(one, images)
    expected = plain('radio')(pixel_values=images, output_hidden_states=True)
    torch.testing.assert_close(tokens, expected.features)
    torch.testing.assert_close(summary, expected.summary)
    first = expected.hidden_states[1][:, 4:]
    torch.testing.assert_close(maps[0], first.transpose(1, 2).reshape(2, 32, 4, 6))


@torch.no_grad()
def test_padding_stays_out_of_a_mean(root):
    images = torch.randn(2, 3, 64, 64)
    samples = [BaseDataElement(metainfo=dict(img_shape=x)) for x in ((64, 64), (33, 16))]
    maps, _, summary = shown(model('dinov3-convnext', root), images, samples)
    torch.testing.assert_close(summary[0], maps[0][0].mean((1, 2)))
    torch.testing.assert_close(summary[1], maps[0][1, :, :, :1].mean((1, 2)))


@pytest.mark.parametrize('kind, grid', [('dinov2', (3, 5)), ('dinov3', (3, 5))])
@torch.no_grad()
def test_a_batch_of_odd_size_from_a_student_with_another_normalisation(kind, grid, root):
    student = build(fcn())
    size, picture = (45, 70), (40, 61)
    pixels = torch.randint(0, 256, (1, 3, *size)).float()
    pixels[:, :, picture[0] :], pixels[:, :, :, picture[1] :] = 0, 0
    preprocessor = student.data_preprocessor
    batch = (pixels.flip(1) - preprocessor.mean) / preprocessor.std
    sample = BaseDataElement(metainfo=dict(img_shape=picture))
    teacher = OnlineTeacher(
        dict(type='mmkd_plugin.FoundationModel', source='transformers', path=save(kind, root)),
        checkpoint=None,
        inference=dict(precision='fp32'),
    )
    preview = prepare(teacher, preprocessor, TAPS)
    assert [tuple(x.shape) for x in preview.maps[Tap('maps')]] == [(1, 32, 8, 8)]
    found = taught(teacher, batch, [sample], TAPS)

    images = normalised(pixels)
    images[:, :, picture[0] :], images[:, :, :, picture[1] :] = 0, 0  # the mean
    images = F.pad(images, (0, 80 - 70, 0, 48 - 45))
    if kind == 'dinov2':
        images = F.interpolate(images, (42, 70), mode='bicubic', antialias=True)
    expected = plain(kind)(pixel_values=images)
    tokens = expected.last_hidden_state[:, -15:]
    options = dict(atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[Tap('tokens')], tokens, **options)
    grid_of = tokens.transpose(1, 2).reshape(1, 32, *grid)
    torch.testing.assert_close(found[Tap('maps')][0], grid_of, **options)
    torch.testing.assert_close(found[Tap('summary')], expected.pooler_output, **options)


def test_a_teacher_has_its_weights_and_computes_in_bf16(root, caplog):
    config = dict(type='mmkd_plugin.FoundationModel', source='transformers')
    config['path'] = save('dinov3', root)
    student = build(fcn()).data_preprocessor
    exact, half = (
        OnlineTeacher(config, None, inference=dict(precision=one)) for one in ('fp32', 'bf16')
    )
    assert 'random' not in caplog.text
    images = torch.randn(2, 3, 64, 64)
    maps = []
    for teacher in (exact, half):
        prepare(teacher, student, TAPS)
        maps.append(taught(teacher, images, None, TAPS)[Tap('maps')][0])
    assert 'in bf16' in half.work() and config['path'] in half.work()
    assert maps[1].dtype == torch.float32 and not torch.equal(*maps)
    assert (maps[0] - maps[1]).norm() / maps[0].norm() < 0.03
    before = {key: x.clone() for key, x in exact.model.state_dict().items()}
    exact.model.init_weights()
    assert all(torch.equal(x, before[key]) for key, x in exact.model.state_dict().items())


def test_nothing_is_asked_of_a_server(root, monkeypatch):
    path = save('dinov3', root)

    def refuse(*_, **__):
        raise AssertionError('a connection')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    FoundationModel('transformers', path)
    assert os.environ['HF_HUB_OFFLINE'] == '1'


def test_a_whole_model_of_images_and_text_gives_its_vision_part(root):
    import transformers

    _, _, vision = KINDS['siglip']
    text = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config = transformers.SiglipConfig(
        vision_config=dict(vision), text_config=dict(**text, vocab_size=9)
    )
    whole = transformers.SiglipModel(config)
    whole.save_pretrained(root / 'whole')
    found = FoundationModel('transformers', str(root / 'whole'))
    own = whole.vision_model.post_layernorm.weight
    assert any(own.shape == p.shape and own.equal(p) for p in found.parameters())


def test_other_forms_of_weights(root):
    path = Path(save('dinov3', root))
    weights = plain('dinov3').state_dict()
    images = torch.randn(1, 3, 32, 32)
    expected = shown(model('dinov3', root), images)[1]

    file = FoundationModel('transformers', str(path / 'model.safetensors'))
    torch.testing.assert_close(shown(file.eval(), images)[1], expected)

    shards = root / 'shards'
    shards.mkdir()
    names = {key: f'{i % 2}.bin' for i, key in enumerate(weights)}
    for name in set(names.values()):
        torch.save({k: v for k, v in weights.items() if names[k] == name}, shards / name)
    (shards / 'pytorch_model.bin.index.json').write_text(json.dumps(dict(weight_map=names)))
    for name in ('config.json', 'preprocessor_config.json'):
        (shards / name).write_text((path / name).read_text())
    split = FoundationModel('transformers', str(shards))
    torch.testing.assert_close(shown(split.eval(), images)[1], expected)


class _Code:
    def __reduce__(self):
        return os.mkdir, ('ran',)


def _without(root: Path, kind: str, *names: str) -> Path:
    """A folder with the files of a kind except some."""
    folder = root / f'without {" ".join(names)}'
    folder.mkdir(exist_ok=True)
    for file in Path(save(kind, root)).iterdir():
        if file.name not in names:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_what_cannot_be_loaded_is_said_in_one_line(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save('dinov3', root)

    def fails(error: type[Exception], match: str, path=path, **kwargs) -> None:
        arguments = dict(source='transformers', path=str(path)) | kwargs
        with pytest.raises(error, match=match) as caught:
            FoundationModel(**arguments)
        assert '\n' not in str(caught.value)

    get = 'hf download facebook/dinov3-vitb16-pretrain-lvd1689m --local-dir dinov3-vitb16/'
    fails(
        FileNotFoundError,
        f'^path: no foundation model at dinov3-vitb16/.*: {get}',
        'dinov3-vitb16/',
    )
    fails(FileNotFoundError, 'hf download OWNER/NAME --local-dir x', 'x')
    fails(FileNotFoundError, r'has no config\.json', _without(root, 'dinov3', 'config.json'))
    bare = _without(root, 'dinov3', 'model.safetensors')
    fails(FileNotFoundError, r'has no weights: expected model\.safetensors', bare)
    (bare / 'pytorch_model.bin').write_bytes(pickle.dumps(_Code(), 2))
    fails(CheckpointError, r'pytorch_model\.bin', bare)
    torch.save(dict(weights=_Code()), bare / 'pytorch_model.bin')
    fails(CheckpointError, 'would run code', bare)
    assert not (tmp_path / 'ran').exists()

    torch.save(dict(list(plain('dinov3').state_dict().items())[:-3]), bare / 'pytorch_model.bin')
    fails(ValueError, '3 are missing', bare)
    said = json.loads((bare / 'config.json').read_text())
    (bare / 'config.json').write_text(json.dumps(said | dict(hidden_size=64)))
    fails(ValueError, '', bare)
    for kind, match in (
        ('dinov3_vitt', "no model 'dinov3_vitt'; did you mean 'dinov3_vit'"),
        ('bert', 'a BertModel does not take images'),
    ):
        (bare / 'config.json').write_text(json.dumps(dict(model_type=kind)))
        fails(ValueError, match, bare)
    newer = dict(model_type='dinov9', transformers_version='99.1.0.dev0')
    (bare / 'config.json').write_text(json.dumps(newer))
    fails(ValueError, r"'dinov9' \(transformers 99\.1\.0\.dev0 saved the weights: install", bare)
    (bare / 'config.json').write_text('[]')
    fails(ValueError, 'holds a list', bare)

    fails(ValueError, r"one of 'transformers'.*did you mean", source='transformer')
    fails(ValueError, 'there is no block 2', blocks=[2])
    fails(ValueError, 'blocks must be a list', blocks=[])
    fails(ValueError, 'stride must be a whole number', stride=0)
    small = FoundationModel('transformers', save('sam', root), stride=4)
    with pytest.raises(ValueError, match='stride from 12 on'):
        small(torch.zeros(1, 3, 64, 96))
    with pytest.raises(ValueError, match='no task loss'):
        small(torch.zeros(1, 3, 64, 96), mode='loss')


def test_a_wrong_tap_names_those_that_there_are(root):
    config = dict(
        type='mmkd_plugin.FoundationModel', source='transformers', path=save('dinov3', root)
    )
    with pytest.raises(ValueError, match=r"'mapz'.*'?maps'?"):
        prepare(OnlineTeacher(config, None), build(fcn()).data_preprocessor, [Tap('mapz')])
