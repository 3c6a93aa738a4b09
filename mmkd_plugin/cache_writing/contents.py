"""Contents: what a cache stores of each tap, by the losses that compare its maps."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.config import Config

from mmkd_plugin.cache.wiring import NO_WAY
from mmkd_plugin.cli import UsageError
from mmkd_plugin.losses.traits import LossTraits
from mmkd_plugin.taps import Tap
from mmkd_plugin.teachers.cached import stored_as
from mmkd_plugin.teachers.configs import teacher_configs
from mmkd_plugin.terms.term import Term


def terms_of(cfg: Config, teacher: str, warped: bool) -> list[Term]:
    """Returns the terms that learn from a teacher, whose maps are warped in training or not."""
    names = list(teacher_configs(cfg.model.teacher))
    terms = [
        Term.from_config(name, line, names) for name, line in (cfg.model.distill or {}).items()
    ]
    terms = [term for term in terms if teacher in term.teachers]
    if not terms:
        raise UsageError(f"no term of `distill` learns from teacher '{teacher}'")
    for term in terms:
        if term.through is not None or term.queries is not None or term.on_rois:
            key = '.through' if term.through is not None else '.queries' if term.queries else ''
            raise UsageError(
                f'distill.{term.name}{key}: no cache can replace this teacher. {NO_WAY}'
            )
        if warped:
            term.check_stored()
        if term.traits.compares == 'gradients':
            raise UsageError(
                f'distill.{term.name} compares gradients of the task loss, which depend on the '
                'labels of each crop: they cannot be stored. Train this one with the teacher itself'
            )
    return terms


def set_top_k(about: dict[str, dict], terms: Sequence[Term], k: int | None) -> None:
    """Notes for each tap how many of its logits are stored."""
    independent = {
        str(tap)
        for term in terms
        if term.explainer is not None and about[stored_as(term.teacher_view)]['scores'][1]
        for tap in term.teacher_view.scores
    }
    for name, one in about.items():
        if 'scores' in one:  # explanations
            one['top_k'] = None
            continue
        compared = traits_of(name, terms)
        fits = (
            k is not None
            and name not in independent
            and all(traits.compares_probabilities for traits in compared)
        )
        one['top_k'] = k if fits else None
        if fits and not 0 < k < min(channels for channels, *_ in one['maps']):
            raise UsageError(f"--top-k {k}: '{name}' gives {one['maps'][0][0]} classes")
    if k is not None and not any(one['top_k'] for one in about.values()):
        raise UsageError(
            '--top-k keeps the probabilities of classes, and no term compares these alone, as '
            'PixelWiseLoss and SoftTargetLoss do with a softmax'
        )


def set_tau(about: dict[str, dict], terms: Sequence[Term]) -> None:
    """Notes for each tap the temperature of its probabilities, if losses compare these alone."""
    for name, one in about.items():
        traits = traits_of(name, terms)
        alone = bool(traits) and all(each.compares_probabilities for each in traits)
        explained = any(
            Tap.parse(name) in term.teacher_view.scores
            for term in terms
            if term.explainer is not None
        )
        fits = 'scores' not in one and alone and not explained
        one['tau'] = max(each.tau for each in traits) if fits else None


def set_channels(about: dict[str, dict], terms: Sequence[Term], channels: int) -> None:
    """Notes for each tap whose channels are mixed how many are left; fills are as they were."""
    for name, one in about.items():
        traits = traits_of(name, terms)
        whole = any(each.compares_probabilities or each.needs_raw_maps for each in traits)
        scores = 'scores' in one or any(one.get('class_scores') or ())
        more = any(count > channels for count, *_ in one['maps'])
        if whole or scores or not more or not traits:
            continue
        one['unmixed'] = one['maps']
        one['maps'] = [[min(count, channels), *strides] for count, *strides in one['maps']]
        one['norms'] = ['' for _ in one['norms']]
    if not any('unmixed' in one for one in about.values()):
        raise UsageError(
            f'--channels {channels}: no map has more channels that may be mixed; class scores and '
            'explanations stay whole'
        )


def traits_of(tap: str, terms: Sequence[Term]) -> list[LossTraits]:
    """The traits of the losses that compare the maps of a tap."""
    return [
        term.traits
        for term in terms
        if term.explainer is None and Tap.parse(tap) in term.teacher_tap.taps
    ]
