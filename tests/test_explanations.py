from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from mmkd_plugin.explanations import (
    GradCAM,
    GradientAttention,
    Scores,
    choose_classes,
    explain,
    score_gradients,
    scores_of,
)
from mmkd_plugin.taps import Taps
from tests.stock_models import (
    batch,
    build,
    calls_of,
    distiller,
    faster_rcnn,
    fcn,
    pspnet,
    retinanet,
)

SEG, DET = 'decode_head.conv_seg', 'bbox_head.retina_cls'


def term(kind: str = 'GradCAM', tap: str = 'backbone.layer4', scores: str = SEG, **kwargs) -> dict:
    explainer = dict(type=f'mmkd_plugin.{kind}', scores=scores, **kwargs)
    return dict(
        explain=dict(tap=tap, explainer=explainer, loss=dict(type='mmkd_plugin.ExplanationLoss'))
    )


# --- what is chosen ------------------------------------------------------------------------------


def test_positions_are_those_where_the_class_wins():
    scores = torch.randn(2, 5, 4, 6)
    scores[0, 3] += 9
    winner = scores.argmax(1)
    chosen = choose_classes(scores, Scores(5, False), 5)
    assert chosen.classes[0].tolist() == [3, -1, -1, -1, -1]
    for n in range(2):
        counts = [int((winner[n] == c).sum()) for c in chosen.classes[n].tolist() if c >= 0]
        assert counts == sorted(counts, reverse=True) and sum(counts) == 24
        for k, c in enumerate(chosen.classes[n].tolist()):
            expected = (winner[n] == c) if c >= 0 else torch.zeros(4, 6, dtype=torch.bool)
            assert torch.equal(chosen.positions[0][n, k, 0], expected)


def test_anchors_of_a_detector_are_those_above_the_threshold():
    scores = [torch.randn(2, 3 * 4, 5, 7) * 3 - 4, torch.randn(2, 3 * 4, 2, 3) * 3 - 4]
    chosen = choose_classes(scores, Scores(4, True), 4, score_thr=0.4)
    seen = 0
    for x, positions in zip(scores, chosen.positions, strict=True):
        # as mmdet flattens them: positions, then anchors, then classes
        flat = x.permute(0, 2, 3, 1).reshape(2, -1, 4).sigmoid() > 0.4
        for n in range(2):
            for k, c in enumerate(chosen.classes[n].tolist()):
                mine = positions[n, k].permute(1, 2, 0).reshape(-1)
                expected = flat[n, :, c] if c >= 0 else torch.zeros_like(mine)
                assert torch.equal(mine, expected)
                seen += int(mine.sum())
    assert seen == sum(int((x.sigmoid() > 0.4).sum()) for x in scores) > 0


def test_the_draw_depends_on_seed_and_step_alone_and_reaches_every_class():
    scores = torch.randn(3, 6, 8, 8)
    kind = Scores(6, False)
    first = [GradCAM(SEG).choose(scores, kind, step).classes for step in range(60)]
    torch.manual_seed(5)
    again = [GradCAM(SEG).choose(scores, kind, step).classes for step in range(60)]
    other = [GradCAM(SEG, seed=1).choose(scores, kind, step).classes for step in range(60)]
    assert all(map(torch.equal, first, again)) and not all(map(torch.equal, first, other))
    for n in range(3):
        present = set(scores[n].argmax(0).unique().tolist())
        assert {int(x[n]) for x in first} == present


def test_no_class_at_all():
    chosen = choose_classes(torch.full((2, 8, 3, 3), -9.0), Scores(4, True), 2)
    assert chosen.classes.tolist() == [[-1, -1], [-1, -1]] and not chosen.positions[0].any()


def test_class_scores_of_a_classifier():
    chosen = choose_classes(torch.tensor([[1.0, 5.0, 2.0], [3.0, 0.0, 1.0]]), Scores(3, False), 1)
    assert chosen.classes.tolist() == [[1], [0]] and chosen.positions[0].all()


def test_two_classes_in_one_channel():
    scores = torch.tensor([-1.0, 2.0, 3.0, -4.0]).view(1, 1, 2, 2)
    chosen = choose_classes(scores, Scores(2, False), 2)
    positions = dict(
        zip(chosen.classes[0].tolist(), chosen.positions[0][0, :, 0].tolist(), strict=True)
    )
    assert positions == {0: [[True, False], [False, True]], 1: [[False, True], [True, False]]}
    features = torch.randn(1, 3, 2, 2, requires_grad=True)
    conv = nn.Conv2d(3, 1, 1)
    (gradients,) = score_gradients(conv(features), features, chosen, Scores(2, False), False)
    for k, c in enumerate(chosen.classes[0].tolist()):
        expected = conv.weight[0] * chosen.positions[0][0, k] * (1 if c else -1)
        torch.testing.assert_close(gradients[k, 0], expected)


def test_scores_that_do_not_fit():
    with pytest.raises(ValueError, match=r'a channel for each of the 5 classes, got \(1, 7, 2'):
        choose_classes(torch.zeros(1, 7, 2, 2), Scores(5, False), 1)
    with pytest.raises(ValueError, match=r'of the 5 classes \(and anchors\), got \(1, 7, 2'):
        choose_classes(torch.zeros(1, 7, 2, 2), Scores(5, True), 1)


def test_features_whose_channels_are_a_multiple_of_the_classes_are_no_scores():
    choose_classes(torch.zeros(1, 10, 2, 2), Scores(5, True), 1)  # two anchors
    with pytest.raises(ValueError, match=r'a channel for each of the 5 classes, got \(1, 10, 2'):
        choose_classes(torch.zeros(1, 10, 2, 2), Scores(5, False), 1)


# --- explanations against plain loops ------------------------------------------------------------


def resized(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, with centres at half pixels."""
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * plane.shape[0] / height - 0.5, 0), plane.shape[0] - 1)
            u = min(max((x + 0.5) * plane.shape[1] / width - 0.5, 0), plane.shape[1] - 1)
            i, j = int(v), int(u)
            k, m = min(i + 1, plane.shape[0] - 1), min(j + 1, plane.shape[1] - 1)
            a, b = v - i, u - j
            top = plane[i, j] * (1 - b) + plane[i, m] * b
            low = plane[k, j] * (1 - b) + plane[k, m] * b
            out[y, x] = top * (1 - a) + low * a
    return out


def plain(kind: str, feature: np.ndarray, gradient: np.ndarray, size: tuple) -> np.ndarray:
    plane = np.zeros(feature.shape[1:])
    for c in range(len(feature)):
        if kind == 'GradCAM':
            plane += gradient[c].mean() * feature[c]
        else:
            plane += abs(gradient[c]) / len(feature)
    return resized(np.maximum(plane, 0), *size)


@pytest.mark.parametrize('kind', [GradCAM, GradientAttention])
def test_a_segmentor(kind):
    torch.manual_seed(1)
    model = build(pspnet(4)).double().eval()
    nn.init.normal_(model.decode_head.conv_seg.weight)
    inputs = torch.randn(2, 3, 40, 56, dtype=torch.float64)
    explainer = kind(SEG, max_classes=5)
    explanation = explain(model, inputs, None, explainer, 'backbone.layer4')
    (maps,) = explanation.maps
    features = model.backbone(inputs)[3].detach().requires_grad_()
    logits = model.decode_head((None, None, None, features))
    winner = logits.argmax(1)
    assert maps.shape == (2, 5, 1, 40, 56) and maps.dtype == torch.float64
    checked = 0
    for n in range(2):
        explained = set(explanation.chosen.classes[n].tolist())
        assert explained - {-1} == set(winner[n].unique().tolist())
        for k, c in enumerate(explanation.chosen.classes[n].tolist()):
            if c < 0:
                assert not maps[n, k].any()
                continue
            y = logits[n, c][winner[n] == c].sum()
            (gradient,) = torch.autograd.grad(y, features, retain_graph=True)
            expected = plain(
                kind.__name__, features[n].detach().numpy(), gradient[n].numpy(), (40, 56)
            )
            np.testing.assert_allclose(maps[n, k, 0].numpy(), expected, rtol=1e-8, atol=1e-14)
            checked += expected.any()
    assert checked >= 2


@pytest.mark.parametrize('kind', [GradCAM, GradientAttention])
def test_a_detector(kind):
    torch.manual_seed(1)
    model = build(retinanet(4)).double().eval()
    nn.init.normal_(model.bbox_head.retina_cls.weight, 0, 0.5)
    nn.init.constant_(model.bbox_head.retina_cls.bias, -1)
    inputs = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    explanation = explain(model, inputs, None, kind(DET, max_classes=4, score_thr=0.5), 'neck')
    levels = [x.detach().requires_grad_() for x in model.extract_feat(inputs)]
    scores = [x.permute(0, 2, 3, 1).reshape(2, -1, 4) for x in model.bbox_head.forward(levels)[0]]
    assert len(explanation.maps) == 5
    nonzero = 0
    for n in range(2):
        for k, c in enumerate(explanation.chosen.classes[n].tolist()):
            if c < 0:
                assert not any(x[n, k].any() for x in explanation.maps)
                continue
            y = sum(x[n, :, c][x[n, :, c].sigmoid() > 0.5].sum() for x in scores)
            gradients = torch.autograd.grad(y, levels, retain_graph=True)
            for level, gradient, maps in zip(levels, gradients, explanation.maps, strict=True):
                expected = plain(
                    kind.__name__, level[n].detach().numpy(), gradient[n].numpy(), (64, 96)
                )
                np.testing.assert_allclose(maps[n, k, 0].numpy(), expected, rtol=1e-7, atol=1e-12)
                nonzero += expected.any()
    assert nonzero >= 5


def test_all_zero_features_give_zero():
    features = torch.zeros(1, 3, 4, 4, requires_grad=True)
    scores = nn.Conv2d(3, 2, 1)(features)
    kind = Scores(2, False)
    chosen = choose_classes(scores, kind, 1)
    (maps,) = GradCAM(SEG)(features, scores, chosen, kind, (8, 8), create_graph=True).maps
    assert not maps.any()
    maps.sum().backward()
    assert features.grad.isfinite().all()


def test_scores_of_another_stride_take_the_nearest_positions():
    kind = Scores(2, False)
    teacher = torch.zeros(1, 2, 2, 2)
    teacher[0, 1, 0, 1] = 1
    chosen = choose_classes(teacher, kind, 2)
    features = torch.randn(1, 3, 4, 4, requires_grad=True)
    conv = nn.Conv2d(3, 2, 1)
    (gradients,) = score_gradients(conv(features), features, chosen, kind, False)
    k = chosen.classes[0].tolist().index(1)
    where = torch.zeros(4, 4)
    where[:2, 2:] = 1
    torch.testing.assert_close(gradients[k, 0], conv.weight[1] * where)


def test_scores_that_do_not_depend_on_the_features():
    features = torch.randn(1, 3, 4, 4, requires_grad=True)
    scores = torch.randn(1, 2, 4, 4, requires_grad=True) * 1
    chosen = choose_classes(scores, Scores(2, False), 1)
    with pytest.raises(ValueError, match='do not depend on the map'):
        score_gradients(scores, features, chosen, Scores(2, False), False)


def test_explaining_leaves_the_model_as_it_was():
    model = build(pspnet(4)).train()
    model.backbone.layer1.eval().requires_grad_(False)
    before = deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    explain(model, torch.randn(1, 3, 32, 32), None, GradCAM(SEG), 'backbone.layer4')
    assert modes == (
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
    )
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


# --- in training ---------------------------------------------------------------------------------


@pytest.mark.parametrize('classes', [1, 3])
def test_second_order_gradients_agree_with_finite_differences(classes):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Softplus()).double()
    head = nn.Sequential(nn.Conv2d(4, 5, 3, stride=2), nn.Tanh(), nn.Conv2d(5, 3, 1)).double()
    images = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    kind = Scores(3, False)
    teacher = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    chosen = choose_classes(teacher, kind, classes)
    explainer, target = GradCAM(SEG), torch.rand(2 * classes, 1, 6, 6, dtype=torch.float64)

    def loss(create_graph: bool) -> torch.Tensor:
        features = body(images)
        maps = explainer(features, head(features), chosen, kind, (6, 6), create_graph).pairs()[0]
        return (maps - target).square().sum()

    parameters = [*body.parameters(), *head.parameters()]
    gradients = torch.autograd.grad(loss(True), parameters, allow_unused=True)
    assert gradients[-1] is None  # a constant added to the scores
    assert sum(g is not None and bool(g.abs().max() > 1e-9) for g in gradients) >= 6
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for index in list(np.ndindex(*parameter.shape))[::7]:
            values = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter[index] += step
                values.append(loss(False).item())
                with torch.no_grad():
                    parameter[index] -= step
            numeric = (values[0] - values[1]) / 2e-5
            found = 0.0 if gradient is None else gradient[index].item()
            assert found == pytest.approx(numeric, rel=1e-4, abs=1e-6)


def test_rows_that_cannot_be_batched_go_one_by_one(monkeypatch):
    torch.manual_seed(0)
    features = torch.randn(2, 4, 5, 5, requires_grad=True)
    scores = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 5, 1))(features)
    kind = Scores(5, False)
    chosen = choose_classes(scores, kind, 3)
    (together,) = score_gradients(scores, features, chosen, kind, True)

    def refuse(*_, **__):
        raise RuntimeError('Batching rule not implemented')

    monkeypatch.setattr(torch.func, 'vmap', refuse)
    (singly,) = score_gradients(scores, features, chosen, kind, True)
    assert together.shape == (3, 2, 4, 5, 5)
    torch.testing.assert_close(singly, together)


@pytest.mark.parametrize(
    'models, scores, tap',
    [((pspnet, pspnet), SEG, 'backbone.layer4'), ((retinanet, retinanet), DET, 'neck')],
)
@pytest.mark.parametrize('classes', [1, 3])
def test_one_differentiable_backward_pass_however_many_classes(
    monkeypatch, models, scores, tap, classes
):
    model = distiller(
        models[0](4),
        models[1](8),
        term(tap=tap, scores=scores, max_classes=classes, score_thr=0.001),
    ).train()
    model.distill['explain'].watch.blind = True  # its measurements are backward passes too
    inputs, samples = batch(model.student)
    calls = []
    real = torch.autograd.grad

    def counting(*args, create_graph=False, **kwargs):
        calls.append(create_graph)
        return real(*args, create_graph=create_graph, **kwargs)

    monkeypatch.setattr(torch.autograd, 'grad', counting)
    loss = model(inputs, samples, mode='loss')['distill.explain.loss']
    assert calls == [False, True]  # the teacher's, then the student's
    loss.backward()
    assert calls == [False, True]
    for name, parameter in model.student.named_parameters():
        if name.startswith(('backbone.layer1', scores)) and 'weight' in name:
            assert parameter.grad.abs().max() > 0, name
    assert all(p.grad is None for p in model.teachers['teacher'].model.parameters())


def test_a_student_equal_to_its_teacher_has_no_difference():
    model = distiller(fcn(4), fcn(4), term(max_classes=3))
    model.student.load_state_dict(model.teachers['teacher'].model.state_dict())
    inputs, samples = batch(model.student)
    calls = calls_of(model.distill.explain.loss)
    loss = model.eval()(inputs, samples, mode='loss')['distill.explain.loss']
    (((student, teacher), _),) = calls
    assert torch.equal(student, teacher) and teacher.flatten(1).any(1).all()
    assert loss.item() == pytest.approx(0, abs=1e-5)


class NotedCAM(GradCAM):
    """Grad-CAM that notes which classes it explains, beside the width of the model's maps."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.explained = []

    def __call__(self, features, scores, chosen, *args, **kwargs):
        self.explained.append((features.shape[1], chosen))
        return super().__call__(features, scores, chosen, *args, **kwargs)


def test_the_teachers_classes_are_explained_in_both():
    line = term(max_classes=2)
    line['explain']['explainer']['type'] = NotedCAM
    model = distiller(fcn(4), fcn(8), line).train()
    inputs, samples = batch(model.student)
    explainer = model.distill.explain.explainer
    explainer.explained.clear()  # of the trial at build time
    model(inputs, samples, mode='loss')
    widths, (ours, theirs) = zip(*explainer.explained, strict=True)
    assert sorted(widths) == [32, 64]  # channels of the student's layer4 and of the teacher's
    assert torch.equal(ours.classes, theirs.classes)
    for mine, other in zip(ours.positions, theirs.positions, strict=True):
        assert torch.equal(mine, other)
    teacher = model.teachers['teacher'].model
    logits = teacher.decode_head(teacher.extract_feat(inputs))
    for n in range(2):
        present = set(logits[n].argmax(0).unique().tolist())
        assert set(ours.classes[n].tolist()) - {-1} <= present


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('classes', [1, 2])
def test_amp(dtype, classes):
    model = distiller(fcn(4), fcn(8), term(max_classes=classes)).train()
    inputs, samples = batch(model.student)
    expected = model(inputs, samples, mode='loss')['distill.explain.loss']
    with torch.autocast('cpu', dtype):
        loss = model(inputs, samples, mode='loss')['distill.explain.loss']
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), abs=0.15)
    loss.backward()
    grads = [p.grad for p in model.student.backbone.parameters() if p.grad is not None]
    assert grads and all(g.isfinite().all() for g in grads)


def test_with_other_terms_and_without_the_task():
    terms = term(max_classes=2) | dict(
        logits=dict(tap=SEG, loss=dict(type='mmkd_plugin.PixelWiseLoss')),
        gradients=dict(tap=SEG, loss=dict(type='mmkd_plugin.GradientAttentionLoss')),
    )
    alone = distiller(fcn(4), fcn(8), term(max_classes=2), seed=3).train()
    model = distiller(fcn(4), fcn(8), terms, seed=3, task=dict(loss_weight=0)).train()
    inputs, samples = batch(model.student)
    expected = alone(inputs, samples, mode='loss')
    losses = model(inputs, samples, mode='loss')
    assert set(losses) == {f'distill.{name}.loss' for name in terms}
    torch.testing.assert_close(losses['distill.explain.loss'], expected['distill.explain.loss'])
    sum(losses.values()).backward()


def test_nothing_is_explained_in_a_batch_where_the_teacher_sees_nothing():
    model = distiller(
        retinanet(4), retinanet(8), term(tap='neck', scores=DET, score_thr=0.99)
    ).train()
    inputs, samples = batch(model.student)
    loss = model(inputs, samples, mode='loss')['distill.explain.loss']
    assert loss.item() == 0
    loss.backward()


def test_other_losses_can_compare_explanations():
    line = term(max_classes=2)['explain'] | dict(loss=dict(type='mmkd_plugin.HintLoss'))
    model = distiller(fcn(4), fcn(8), dict(explain=line)).train()
    inputs, samples = batch(model.student)
    assert model(inputs, samples, mode='loss')['distill.explain.loss'] >= 0


def test_the_plan_names_what_is_explained(log):
    distiller(fcn(4), fcn(8), term(max_classes=2))
    (text,) = (text for text in log.messages if 'ExplanationLoss' in text)
    assert f'on explanations: GradCAM of {SEG}, 2 classes an image' in text
    assert f'runs backbone, decode_head; stops after {SEG}' in text


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(max_classes=0), 'max_classes must be a whole number from 1 on, got 0'),
        (dict(max_classes=True), 'max_classes must be a whole number, got True'),
        (dict(score_thr=1), 'score_thr must be between 0 and 1, got 1'),
        (dict(score='x'), 'explainer has an unknown key `score`; did you mean `scores`'),
        (
            dict(kind='GradCam'),
            "no 'mmkd_plugin.GradCam'; did you mean mmkd_plugin.GradCAM",
        ),
        (dict(kind='HintLoss'), 'explainer'),
        (dict(scores=['decode_head'] * 2), 'names a tap twice; name each once'),
        (dict(scores='decode_head.conv_sg'), "no module 'decode_head.conv_sg'"),
        (dict(tap='backbone.layer5'), "no module 'backbone.layer5'"),
        (dict(scores='backbone.layer4'), "no module around 'backbone.layer4' has `num_classes`"),
        (
            dict(tap='decode_head.conv_seg', scores='decode_head.convs.0.conv'),
            'expected class scores',
        ),
    ],
)
def test_explainers_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        distiller(fcn(4), fcn(8), term(**change))


def test_an_explanation_loss_needs_an_explainer():
    line = dict(tap=SEG, loss=dict(type='mmkd_plugin.ExplanationLoss'))
    with pytest.raises(ValueError, match='compares explanations; add explainer=dict'):
        distiller(fcn(4), fcn(8), dict(explain=line))


def test_dynamic_linear_weights_need_b_cos_layers():
    with pytest.raises(
        ValueError, match=r'EncoderDecoder has no B-cos layer, .* take mmkd_plugin.Gr'
    ):
        distiller(fcn(4), fcn(8), term('BcosWeights', 'backbone@input'))


@pytest.mark.parametrize('loss', ['IntraClassVariationLoss', 'GradientAttentionLoss'])
def test_losses_that_cannot_compare_explanations(loss):
    line = term()['explain'] | dict(loss=dict(type=f'mmkd_plugin.{loss}'))
    with pytest.raises(ValueError, match=f'{loss} cannot compare explanations'):
        distiller(fcn(4), fcn(8), dict(explain=line))


def test_a_connector_has_nothing_to_do():
    line = term()['explain'] | dict(connector=dict(type='mmkd_plugin.ConvConnector'))
    with pytest.raises(ValueError, match='leave the connector out'):
        distiller(fcn(4), fcn(8), dict(explain=line))


def test_models_of_different_classes():
    with pytest.raises(ValueError, match='the student has 5 classes and the teacher 7'):
        distiller(fcn(4), fcn(8, classes=7), term())


def test_a_map_behind_the_scores():
    line = term()['explain'] | dict(tap='backbone.layer4', teacher_tap='aside')
    teacher = fcn(8)
    with pytest.raises(ValueError, match="no module 'aside'"):
        distiller(fcn(4), teacher, dict(explain=line))


def test_two_stages_have_no_dense_class_scores():
    with pytest.raises(ValueError, match='teacher'):
        distiller(
            faster_rcnn(4), faster_rcnn(8), term(tap='neck', scores='roi_head.bbox_head.fc_cls')
        )


def test_a_softmax_with_background_is_not_explained():
    config = retinanet(4)
    config['bbox_head']['loss_cls'] = dict(type='CrossEntropyLoss', use_sigmoid=False)
    with pytest.raises(ValueError, match='have a background class; only heads with a sigmoid'):
        scores_of(build(config), Taps.parse(DET))


def test_a_self_teacher_cannot_be_explained():
    config = dict(
        type='mmkd_plugin.Distiller',
        student=fcn(4),
        teacher=dict(
            type='mmkd_plugin.SelfTeacher',
            tap='backbone',
            neck=dict(type='mmkd_plugin.BiFPNSelfTeacher', width=1, depth=1),
        ),
        distill=dict(
            explain=dict(
                student_tap='backbone',
                teacher_tap='neck',
                explainer=dict(type='mmkd_plugin.GradCAM', scores=SEG),
                loss=dict(type='mmkd_plugin.ExplanationLoss'),
            )
        ),
    )
    with pytest.raises(ValueError, match='compares explanations, which a self-teacher cannot show'):
        build(config)
