"""Objects, background, attention and context of maps (FGD) piece by piece, with the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.autograd import with_gradients
from mmkd_plugin.losses.numerics.one_pass import Slope, empty_map
from mmkd_plugin.losses.numerics.pieces import Piece, each_piece, scratch
from mmkd_plugin.losses.numerics.precision import common_type, no_autocast

#: Takes the mean absolute values of the positions (N, 1, n) and of the channels (N, C, 1); gives
#: the attention maps of both.
Attention = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def focal_global(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    blocks: Sequence[nn.Module],
    attention: Attention,
    gamma: float,
    lam: float,
) -> Tensor:
    """See :func:`mmkd_plugin.losses.focal_global.focal_global`.

    The gradient of the student is the only map that is made: all else lacks the channels or the
    positions. It takes five passes over pieces of both maps, since a softmax over the positions,
    and the way back through it, need all of them first.
    """
    maps = student.flatten(2), teacher.detach().flatten(2)
    learning = [p for block in blocks for p in block.parameters()]
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (student, *learning))

    def compute(*_: Tensor) -> tuple[Tensor | None, ...]:
        images = max(len(student), 1)
        slope = empty_map(maps[0], passes.dtype) if wanted else None
        places, channels, logits = passes.means()
        shares = logits.softmax(3)
        contexts = passes.sums(shares)
        with torch.enable_grad():  # of what has no channels or no positions
            means = places[0].requires_grad_(), channels[0].requires_grad_()
            of_teacher = attention(places[1], channels[1])
            apart = sum((a - b).abs().sum() for a, b in zip(attention(*means), of_teacher))
            apart = apart * (gamma / images)
            contexts = [x.requires_grad_() for x in contexts]
            added = [block.added(x[..., None])[..., 0] for block, x in zip(blocks, contexts)]
            shift = added[0].to(passes.dtype) - added[1].to(passes.dtype)
        factors = weights.flatten(2) * of_teacher[0] / images, of_teacher[1]
        slopes = torch.autograd.grad(apart, means) if wanted else None
        value, gaps = passes.gaps(factors, shift.detach(), lam / images, slopes, slope)
        value = value + apart.detach()
        if not wanted:
            return (value,)
        keys = [block.k.weight for block in blocks]
        behind = [p for p in learning if p.requires_grad and all(p is not key for key in keys)]
        of_contexts = torch.autograd.grad(shift, [*contexts, *behind], gaps * (2 * lam / images))
        of_keys = passes.through_contexts(of_contexts[:2], shares, slope)
        found = dict(zip(map(id, (*behind, *keys)), (*of_contexts[2:], *of_keys)))
        return value, slope, *(found.get(id(p)) for p in learning)

    passes = Passes(*maps, [block.k.weight.detach() for block in blocks])
    with no_autocast(student.device.type):
        if wanted:
            return with_gradients(compute, maps[0], *learning)
        with torch.no_grad():
            return compute()[0]


class Passes:
    """The passes over pieces of both maps, cut along the positions.

    Args:
        student (Tensor): (N, C, n).
        teacher (Tensor): The same shape.
        keys (Sequence[Tensor]): What the positions are multiplied with for their shares in the
            context, of student and teacher, (1, C, 1, 1).
    """

    def __init__(self, student: Tensor, teacher: Tensor, keys: Sequence[Tensor]) -> None:
        self.maps, self.dtype = (student.detach(), teacher), common_type(student, teacher)
        self.forms = [key.shape for key in keys]
        self.keys = [key.to(self.dtype).view(1, -1, 1) for key in keys]

    def means(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean absolute values over channels and over positions, and the products with the keys.

        Returns:
            tuple[Tensor, Tensor, Tensor]: (2, N, 1, n), (2, N, C, 1), (2, N, 1, n).
        """
        places, logits = self._of_positions(), self._of_positions()

        def work(*pair: Tensor, piece: Piece) -> Tensor:
            sums = []
            for which, (x, key) in enumerate(zip(pair, self.keys)):
                size = torch.abs(x, out=scratch(x))
                places[which][piece] = size.mean(1, keepdim=True)
                logits[which][piece] = key.mT @ x
                sums.append(size.sum(2, keepdim=True))
            return torch.stack(sums)

        return places, self._added_up(work) / max(self.maps[0].shape[2], 1), logits

    def sums(self, weights: Tensor) -> Tensor:
        """The sum over the positions, weighted by (2, N, 1, n): (2, N, C, 1)."""

        def work(*pair: Tensor, piece: Piece) -> Tensor:
            return torch.stack([x @ w[piece].mT for x, w in zip(pair, weights)])

        return self._added_up(work)

    def gaps(
        self,
        factors: tuple[Tensor, Tensor],
        shift: Tensor,
        lam: float,
        slopes: tuple[Tensor, Tensor] | None,
        slope: Slope,
    ) -> tuple[Tensor, Tensor]:
        """``sum of factors (s - t)^2 + lam (s - t + shift)^2``, and what the gradient needs.

        Args:
            factors (tuple[Tensor, Tensor]): Of positions (N, 1, n) and of channels (N, C, 1).
            shift (Tensor): (N, C, 1).
            lam (float): See above.
            slopes (tuple[Tensor, Tensor], optional): The gradient with respect to both mean
                absolute values of the student.
            slope (Tensor, optional): Where to write the gradient of all this.

        Returns:
            tuple[Tensor, Tensor]: The value; the sums of ``s - t + shift`` over the positions,
            (N, C, 1).
        """
        values = []
        if slopes is not None:
            count, channels = max(self.maps[0].shape[2], 1), max(self.maps[0].shape[1], 1)
            pulls = slopes[0] / channels, slopes[1] / count

        def work(s: Tensor, t: Tensor, piece: Piece) -> Tensor:
            images = piece[0]
            gap = torch.sub(s, t, out=scratch(s))
            far = torch.add(gap, shift[images], out=scratch(s, 1))
            of_context = torch.mul(far, far, out=scratch(s, 2)).sum()
            sums = far.sum(2, keepdim=True)
            pull = torch.mul(gap, factors[0][piece], out=scratch(s, 2)).mul_(factors[1][images])
            values.append(gap.mul_(pull).sum() + lam * of_context)
            if slope is not None:
                out = torch.add(pull, far, alpha=lam, out=slope[piece]).mul_(2)
                both = torch.add(pulls[0][piece], pulls[1][images], out=scratch(s, 1))
                out.addcmul_(torch.sign(s, out=scratch(s)), both)
            return sums[None]

        gaps = self._added_up(work)[0]
        return sum(values, start=gaps.new_zeros(())), gaps

    def through_contexts(
        self, worth: Sequence[Tensor], shares: Tensor, slope: Tensor
    ) -> list[Tensor]:
        """The way back from the contexts: to the student's gradient and to those of the keys.

        Args:
            worth (Sequence[Tensor]): The gradient with respect to both contexts, (N, C, 1).
            shares (Tensor): See :meth:`sums`; a softmax over the positions.
            slope (Tensor): The gradient of the student's map, to which its part is added.

        Returns:
            list[Tensor]: The gradients of both keys.
        """
        of_shares = self._of_positions()

        def back(*pair: Tensor, piece: Piece) -> None:
            for x, of_context, found in zip(pair, worth, of_shares):
                found[piece] = of_context[piece[0]].mT @ x

        self._each(back)
        of_shares = shares * (of_shares - (shares * of_shares).sum(3, keepdim=True))

        def work(*pair: Tensor, piece: Piece) -> Tensor:
            slope[piece].addcmul_(worth[0][piece[0]], shares[0][piece])
            slope[piece].addcmul_(self.keys[0], of_shares[0][piece])
            return torch.stack([x @ w[piece].mT for x, w in zip(pair, of_shares)])

        sums = self._added_up(work).sum(1)
        return [x.view(form) for x, form in zip(sums, self.forms)]

    def _of_positions(self) -> Tensor:
        return self.maps[0].new_empty(2, len(self.maps[0]), 1, self.maps[0].shape[2]).to(self.dtype)

    def _each(self, work: Callable[..., Tensor]) -> list[tuple[Piece, Tensor]]:
        def cut(piece: Piece) -> tuple[Piece, Tensor]:
            return piece, work(*(x[piece].to(self.dtype) for x in self.maps), piece=piece)

        return each_piece(cut, self.maps[0], dim=2)

    def _added_up(self, work: Callable[..., Tensor]) -> Tensor:
        """The sums (..., n, C, 1) of all pieces, as (..., N, C, 1)."""
        found = self._each(work)
        if not found:
            return self.maps[0].new_zeros(2, *self.maps[0].shape[:2], 1, dtype=self.dtype)
        total = found[0][1].new_zeros(len(found[0][1]), *self.maps[0].shape[:2], 1)
        for piece, part in found:
            total[:, piece[0]] += part
        return total
