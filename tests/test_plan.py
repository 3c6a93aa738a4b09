"""The plan: the exact text, and shapes in words."""

from __future__ import annotations

import pytest
import torch

from mmkd_plugin.plan import shapes, strides
from tests import stock_models
from tests.runs import needs_ops
from tests.stock_models import cwd, distiller

LOGITS = dict(tap='decode_head.conv_seg', loss=cwd(tau=2, loss_weight=3))


@pytest.fixture
def planned(log):
    """Builds a Distiller and returns its plan."""

    def build(*args):
        log.records.clear()
        distiller(*args)
        (text,) = (text for text in log.messages if 'connector' in text)
        return text

    return build


ONE = """
┏━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━┓
┃ term ┃ student              ┃ teacher              ┃ connector ┃ loss                 ┃ on     ┃
┡━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━┩
│ cwd  │ decode_head.conv_seg │ decode_head.conv_seg │ none      │ ChannelWiseLoss      │ always │
│      │ 5 channels, stride 8 │ 5 channels, stride 8 │           │ tau=2, loss_weight=3 │        │
└──────┴──────────────────────┴──────────────────────┴───────────┴──────────────────────┴────────┘
teacher 'teacher' (EncoderDecoder): EncoderDecoder, 0.8 M parameters, runs backbone, decode_head; stops after decode_head.conv_seg; in fp32 (as all tests have it)
"""  # noqa: E501

TWO = """
┏━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┓
┃ term     ┃ student                      ┃ teacher                    ┃ connector              ┃ loss                     ┃ on                                          ┃
┡━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┩
│ logits   │ decode_head.conv_seg         │ wide: decode_head.conv_seg │ none                   │ ChannelWiseLoss          │ always                                      │
│          │ 5 channels, stride 8         │ 5 channels, stride 8       │                        │ tau=2, loss_weight=3     │                                             │
├──────────┼──────────────────────────────┼────────────────────────────┼────────────────────────┼──────────────────────────┼─────────────────────────────────────────────┤
│ features │ decode_head.bottleneck@input │ other: backbone[2]         │ 1×1 conv 96→64, resize │ ChannelWiseLoss          │ from iteration 10 to 50, linear ramp over 5 │
│          │ 96 channels, stride 8        │ 64 channels, stride 16     │                        │ tau=4.0, loss_weight=1.0 │                                             │
└──────────┴──────────────────────────────┴────────────────────────────┴────────────────────────┴──────────────────────────┴─────────────────────────────────────────────┘
teacher 'wide' (EncoderDecoder): EncoderDecoder, 0.8 M parameters, runs backbone, decode_head; stops after decode_head.conv_seg; in fp32 (as all tests have it)
teacher 'other' (EncoderDecoder): EncoderDecoder, 0.4 M parameters, runs backbone; stops after backbone; in fp32 (as all tests have it)
"""  # noqa: E501


def test_one_term(planned):
    text = planned(stock_models.pspnet(), stock_models.pspnet(16), dict(cwd=LOGITS))
    assert text.strip() == ONE.strip()


def test_two_teachers_and_a_schedule(planned):
    teachers = [
        dict(name='wide', config=stock_models.pspnet(16), checkpoint=None),
        dict(name='other', config=stock_models.segformer(16), checkpoint=None),
    ]
    features = dict(
        student_tap='decode_head.bottleneck@input',
        teacher_tap='backbone[2]',
        teacher='other',
        loss=cwd(),
        schedule=dict(start=10, stop=50, ramp=5),
    )
    distill = dict(logits=dict(LOGITS, teacher='wide'), features=features)
    text = planned(stock_models.pspnet(), teachers, distill)
    assert text.strip() == TWO.strip()


def test_levels_and_their_connectors(planned):
    text = planned(
        stock_models.retinanet(), stock_models.retinanet(16), dict(cwd=dict(tap='neck', loss=cwd()))
    )
    assert '│ 16 channels, stride 8, 16, 32, 64, 128 │' in text
    assert '│ 1×1 conv 16→32 (×5) │' in text
    assert 'runs backbone, neck; stops after neck; in fp32' in text


@pytest.mark.parametrize(
    ('loss', 'connector'),
    [
        ('ChannelWiseLoss', '1×1 conv 16→64, resize'),  # needs the teacher's channels and size,
        ('AttentionLoss', 'resize'),  # its size,
        ('NeuronSelectivityLoss', 'none'),  # or neither of them
    ],
)
def test_what_the_loss_needs_is_what_is_connected(planned, loss, connector):
    term = dict(student_tap='backbone[1]', teacher_tap='backbone[2]')
    distill = dict(term=dict(term, loss=dict(type=f'mmkd_plugin.{loss}')))
    text = planned(stock_models.fcn(), stock_models.fcn(16), distill)
    assert f'│ {connector:9} │' in text


def test_the_teachers_source_is_its_config(planned, tmp_path):
    from mmengine.config import Config

    path = str(tmp_path / 'teacher.py')
    config = stock_models.pspnet(16)
    Config(dict(default_scope=config.pop('_scope_'), model=config)).dump(path)
    text = planned(stock_models.pspnet(), dict(config=path, checkpoint=None), dict(cwd=LOGITS))
    assert f"\nteacher 'teacher' ({path}): EncoderDecoder, 0.8 M parameters" in text


@pytest.mark.parametrize(
    ('maps', 'text'),
    [
        ([(256, 16, 16)], '256 channels, stride 8'),
        ([(8, 128, 128)], '8 channels, stride 1'),
        ([(8, 20, 128)], '8 channels, stride 6.4×1'),
        ([(8, 16, 16), (8, 8, 8)], '8 channels, stride 8, 16'),
        ([(8, 16, 16), (16, 8, 8)], '8, 16 channels, stride 8, 16'),
        ([(64, 256)], '(64, 256)'),
        ([(64, 256), (19,)], '(64, 256); (19,)'),
    ],
)
def test_shapes_in_words(maps, text):
    tensors = [torch.empty(1, *shape) for shape in maps]
    assert shapes(tensors, 128) == text
    if len(maps) == 1:
        assert shapes(tensors[0], 128) == text


def test_strides_of_what_has_positions():
    maps = [torch.empty(1, 8, 16, 32), torch.empty(1, 64, 256), torch.empty(1, 4)]
    assert strides(maps, 128) == [(8, 4)]
    assert strides(maps[0], 256) == [(16, 8)]


@needs_ops
def test_queries(planned):
    line = dict(queries=dict(random=5), loss=dict(type='mmkd_plugin.SharedQueriesLoss'))
    text = planned(
        stock_models.dab_detr(), stock_models.dab_detr(16, queries=7), dict(kd_detr=line)
    )
    assert '│ decoder             │ decoder               │' in text
    assert '│ 2 layers, 4 classes │ last layer, 4 classes │' in text
    assert text.strip().endswith("again: the teacher's queries and 5 random ones (7 + 5)")


@needs_ops
def test_queries_of_masks(planned):
    loss = dict(type='mmkd_plugin.SharedMasksLoss', points=40)
    text = planned(
        stock_models.mask2former(),
        stock_models.mask2former(queries=7),
        dict(shared_masks=dict(queries=dict(random=0, student=True), loss=loss)),
    )
    assert '│ 2 layers, 4 classes, masks │ last layer, 4 classes, masks │' in text
    assert "again: the teacher's queries and the student's (7 + 5)" in text
