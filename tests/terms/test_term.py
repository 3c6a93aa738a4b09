"""Terms: connectors, resizing, what a loss is given, and how a line of the config is read."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmkd_plugin.connectors import ConvConnector
from mmkd_plugin.losses import ChannelWiseLoss, TokenRelationLoss
from mmkd_plugin.taps import Tap, Taps
from mmkd_plugin.terms.schedule import Schedule
from mmkd_plugin.terms.term import Term
from tests.stock_models import cwd

NECK = Taps.parse('neck')
CONV = dict(type='mmkd_plugin.ConvConnector')


class Gap(nn.Module):
    """A loss that keeps what it was given and compares sums, so that it takes any shapes."""

    needs_same_channels = True
    needs_same_size = True

    def forward(self, student, teacher):
        self.given = student, teacher
        pairs = (
            [(student, teacher)] if torch.is_tensor(student) else zip(student, teacher, strict=True)
        )
        return sum((s.sum() - t.sum()).square() for s, t in pairs)


class LabelledGap(Gap):
    needs = ('labels',)

    def forward(self, student, teacher, labels):
        self.labels = labels
        return super().forward(student, teacher)


class FreeGap(Gap):
    needs_same_channels = False
    needs_same_size = False


def connected(student, teacher, loss=None, given=None, **kwargs):
    term = Term('t', NECK, NECK, loss or Gap(), **kwargs)
    term.connect(student, teacher, given)
    return term


def maps(*shapes):
    torch.manual_seed(0)
    tensors = [torch.rand(1, *shape) for shape in shapes]
    return tensors[0] if len(tensors) == 1 else tensors


# Connectors ---------------------------------------------------------------------------------------


def test_a_convolution_only_where_channels_differ():
    term = connected(maps((8, 4, 4), (16, 2, 2)), maps((16, 4, 4), (16, 2, 2)))
    assert [type(connector) for connector in term.connectors] == [ConvConnector, nn.Identity]
    assert term.describe_connectors() == '1×1 conv 8→16'


@pytest.mark.parametrize(
    ('loss', 'student', 'teacher', 'kwargs'),
    [
        (Gap, (8, 4, 4), (8, 4, 4), {}),
        (FreeGap, (8, 4, 4), (16, 4, 4), {}),
        (Gap, (8, 4, 4), (16, 4, 4), dict(connector=None)),
        (Gap, (5, 8), (5, 16), {}),  # tokens: the second dimension is no channel
    ],
)
def test_no_connector(loss, student, teacher, kwargs):
    term = connected(maps(student), maps(teacher), loss(), **kwargs)
    assert isinstance(term.connectors[0], nn.Identity)
    assert term.describe_connectors() == '' and not list(term.parameters())


def test_a_connector_for_each_level():
    levels = (8, 4, 4), (8, 2, 2), (8, 1, 1)
    theirs = (16, 4, 4), (8, 2, 2), (16, 1, 1)
    configs = [dict(CONV, kernel_size=3), None, 'auto']
    term = connected(maps(*levels), maps(*theirs), connector=configs)
    assert term.describe_connectors() == '3×3 conv 8→16, 1×1 conv 8→16'
    assert isinstance(term.connectors[1], nn.Identity)


def test_one_dict_is_built_for_each_level():
    levels, theirs = maps((8, 4, 4), (4, 2, 2), (8, 1, 1)), maps(*[(16, 1, 1)] * 3)
    term = connected(levels, theirs, connector=CONV)
    assert term.describe_connectors() == '1×1 conv 8→16 (×2), 1×1 conv 4→16'
    assert len({id(connector) for connector in term.connectors}) == 3


def test_connectors_of_other_kinds():
    class Adapter(nn.Module):
        def __init__(self, in_channels, width=3):
            super().__init__()
            self.width = (in_channels, width)

        def forward(self, x):
            return x.repeat(1, 2, 1, 1)

    class Anything(nn.Module):
        def __init__(self, **kwargs):
            super().__init__()
            self.kwargs = kwargs

        def forward(self, x):
            return x

    student, teacher = maps((8, 4, 4)), maps((16, 4, 4))
    (adapter,) = connected(student, teacher, connector=dict(type=Adapter, width=7)).connectors
    assert adapter.width == (8, 7)
    (anything,) = connected(student, teacher, connector=dict(type=Anything, b=1)).connectors
    assert anything.kwargs == dict(in_channels=8, out_channels=16, b=1)
    own = nn.Conv2d(8, 16, 1)
    term = connected(student, teacher, ChannelWiseLoss(), connector=own)
    assert term.connectors[0] is own and term.describe_connectors() == 'Conv2d'
    with pytest.raises(ValueError, match=r't.connector has an unknown key `widht`; did you mean'):
        connected(student, teacher, connector=dict(type=Adapter, widht=7))


def test_a_connector_that_does_not_fit():
    student, teacher = maps((8, 4, 4)), maps((16, 4, 4))
    with pytest.raises(ValueError) as error:
        connected(student, teacher, ChannelWiseLoss(), connector=nn.Conv2d(8, 9, 1))
    text = str(error.value)
    assert text.startswith("distill.t: ChannelWiseLoss cannot compare 'neck' of the student")
    assert '(1, 8, 4, 4) and (1, 16, 4, 4)' in text and '9' in text
    assert "what `connector` gives has to fit the teacher's; or leave `connector` out" in text
    with pytest.raises(ValueError, match=r'distill.t: .*expected input.* to have 3 channels'):
        connected(student, teacher, connector=nn.Conv2d(3, 16, 1))


# Resizing -----------------------------------------------------------------------------------------


def seen_by(connector):
    shapes = []
    connector.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    return shapes


@pytest.mark.parametrize(
    ('student', 'teacher', 'converted'),
    [
        ((8, 8, 8), (16, 4, 4), (1, 8, 4, 4)),  # larger: first smaller, then converted
        ((8, 4, 4), (16, 8, 8), (1, 8, 4, 4)),  # smaller: first converted, then larger
        ((8, 2, 8), (16, 4, 8), (1, 8, 2, 8)),
        ((8, 4, 4), (16, 2, 8), (1, 8, 4, 4)),  # as many positions in another form
        ((8, 4, 4), (16, 4, 4), (1, 8, 4, 4)),
    ],
)
def test_the_student_is_resized_at_the_cheaper_end(student, teacher, converted):
    student, teacher = maps(student), maps(teacher)
    term = connected(student, teacher)
    (connector,) = term.connectors
    shapes = seen_by(connector)
    term(student, teacher)
    assert shapes == [converted]
    given, untouched = term.loss.given
    assert given.shape == teacher.shape and untouched is teacher
    size = dict(size=teacher.shape[2:], mode='bilinear', align_corners=False)
    either = F.interpolate(connector(student), **size), connector(F.interpolate(student, **size))
    for expected in either:  # a 1×1 convolution and a resize commute
        torch.testing.assert_close(given, expected)


def test_no_resize_where_the_loss_takes_any_size():
    student, teacher = maps((8, 4, 4)), maps((16, 2, 2))
    term = connected(student, teacher, FreeGap())
    term(student, teacher)
    assert term.loss.given[0] is student


@pytest.mark.parametrize('shape', [(8,), (5, 8)])
def test_vectors_and_tokens_are_not_resized(shape):
    student, teacher = maps(shape), maps((*shape[:-1], 16))
    term = connected(student, teacher)
    term(student, teacher)
    assert term.loss.given == (student, teacher)


def test_each_level_is_resized_to_its_own():
    student, teacher = maps((8, 8, 8), (8, 2, 2)), maps((8, 4, 4), (8, 4, 4))
    term = connected(student, teacher)
    term(student, teacher)
    assert [tuple(level.shape) for level in term.loss.given[0]] == [(1, 8, 4, 4)] * 2


# What the loss is given ---------------------------------------------------------------------------


def test_one_map_in_a_list_is_given_as_a_map():
    student, teacher = maps((8, 4, 4)), maps((8, 4, 4))
    term = connected([student], [teacher])
    term([student], [teacher])
    assert term.loss.given == (student, teacher)


def test_labels_for_a_loss_that_asks():
    student, teacher = maps((8, 4, 4)), maps((8, 4, 4))
    labels = torch.ones(1, 16, 16, dtype=torch.long)
    term = connected(student, teacher, LabelledGap(), dict(labels=labels))
    assert term.traits.needs == ('labels',) and term.loss.labels is labels
    assert not connected(student, teacher, Gap(), dict(labels=labels)).traits.needs


def test_the_gradient_goes_to_student_and_connector():
    student, teacher = maps((8, 8, 8)).requires_grad_(), maps((16, 4, 4))
    term = connected(student, teacher, ChannelWiseLoss())
    term(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in term.parameters())


def test_other_numbers_of_maps():
    with pytest.raises(
        ValueError, match=r"'neck' gives 1 maps in the student .* such as student_tap='neck\["
    ):
        connected(maps((8, 4, 4)), maps((8, 4, 4), (8, 2, 2)))
    with pytest.raises(ValueError, match=r'distill.t: 3 connectors for 2 maps; give one dict'):
        connected(*[maps((8, 4, 4), (8, 2, 2))] * 2, connector=[None] * 3)


def test_maps_that_come_or_go_after_the_dry_forward():
    term = connected(*[maps((8, 4, 4), (8, 2, 2))] * 2)
    with pytest.raises(ValueError, match=r'distill.t: 1 maps of the student and 2 of the teacher'):
        term(maps((8, 4, 4)), maps((8, 4, 4), (8, 2, 2)))


# A line of the config -----------------------------------------------------------------------------


def test_the_maps_of_the_trial_enter_no_memory():
    term = connected(*maps((4, 3, 3), (4, 3, 3)), TokenRelationLoss(queue=3))
    (queue,) = term.loss.queues
    assert not queue.filled.any() and not queue.vectors.any() and queue.place == 0


@pytest.mark.parametrize(
    ('wrong', 'owner'), [((0, 1), "teacher 'teacher'"), ((1, 0), 'the student'), ((0, 0), None)]
)
def test_a_trial_on_maps_that_are_not_finite_names_whose_they_are(wrong, owner):
    class Never(Gap):
        def forward(self, student, teacher):
            return super().forward(student, teacher) * float('nan')

    ours, theirs = maps((4, 3, 3), (4, 3, 3))
    told = (
        r'^distill\.t: Never is nan in a trial, so it cannot teach; look at its `forward`$'
        if owner is None
        else f"^distill.t: Never is nan in a trial, because 'neck' of {owner} is not finite; look "
        'at the `mean` and `std` of its data_preprocessor, and at its weights$'
    )
    with pytest.raises(ValueError, match=told):
        connected(ours / (1 - wrong[0]), theirs / (1 - wrong[1]), Never())


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (lambda loss: dict(loss=loss), r'it returns a dict; expected one number, a tensor'),
        (float, r'it returns a float; expected one number'),
        (lambda loss: loss.expand(2, 3), r'it returns a tensor of shape \(2, 3\); expected one'),
    ],
)
def test_a_loss_that_is_no_number(change, told):
    class Changed(Gap):
        def forward(self, student, teacher):
            return change(super().forward(student, teacher))

    with pytest.raises(ValueError, match=rf"^distill\.t: Changed cannot compare 'neck' .*: {told}"):
        connected(*maps((4, 3, 3), (4, 3, 3)), Changed())


def test_the_needs_of_a_loss_are_a_tuple():
    loss = Gap()
    loss.needs = 'labels'
    with pytest.raises(
        ValueError, match=r"Gap\.needs must be a tuple of names, such as \('labels',"
    ):
        connected(*maps((4, 3, 3), (4, 3, 3)), loss)


def test_a_short_line():
    term = Term.from_config('cwd', dict(tap='a.b[1]', loss=cwd(tau=2)), ['teacher'])
    assert term.name == 'cwd' and term.teacher == 'teacher'
    assert term.student_tap == term.teacher_tap == Taps((Tap('a.b', (1,)),))
    assert isinstance(term.loss, ChannelWiseLoss) and term.loss.tau == 2
    assert term.schedule == Schedule() and len(term.connectors) == 0


def test_a_full_line():
    line = dict(
        tap='a',
        teacher_tap='b@input',
        teacher='large',
        loss=dict(type=Gap),
        connector=None,
        schedule=dict(start=3, ramp=2, by_epoch=True),
    )
    term = Term.from_config('t', line, ['small', 'large'])
    assert (str(term.student_tap), str(term.teacher_tap)) == ('a', 'b@input')
    assert term.teacher == 'large' and isinstance(term.loss, Gap)
    assert term.schedule == Schedule(start=3, ramp=2, by_epoch=True)
    loss = Gap()
    assert Term.from_config('t', dict(line, loss=loss, schedule=None), ['large']).loss is loss


@pytest.mark.parametrize('name', ['keys', 'a b', '', 'a.b', '0'])
def test_names_that_a_term_cannot_have(name):
    with pytest.raises(ValueError, match='cannot name a term'):
        Term.from_config(name, dict(tap='a', loss=cwd()), ['teacher'])


@pytest.mark.parametrize(
    ('loss', 'message'),
    [
        (dict(type='ChanelWiseLoss'), r'did you mean mmkd_plugin.ChannelWiseLoss'),
        (dict(type='mmkd_plugin.Nothing'), r"t.loss.type: there is no 'mmkd_plugin.Nothing'"),
        (dict(tau=1), r"t.loss: expected dict\(type='mmkd_plugin....'\), got {'tau': 1}"),
        (cwd(tua=1), 't.loss has an unknown key `tua`; did you mean `tau`?'),
        (cwd(tau=-1), r't\.loss\.tau must be'),
        (cwd(tau='hot'), r't\.loss\.tau must be'),
    ],
)  # fmt: skip
def test_losses_that_cannot_be_built(loss, message):
    with pytest.raises(ValueError, match=message):
        Term.from_config('t', dict(tap='a', loss=loss), ['teacher'])


def test_the_scope_that_a_base_config_leaves_is_no_argument():
    term = Term.from_config('t', dict(tap='a', loss=cwd(_scope_='mmseg', tau=3)), ['teacher'])
    assert term.loss.tau == 3
