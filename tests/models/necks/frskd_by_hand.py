"""The networks of FRSKD once more, in numpy and plain loops."""

from __future__ import annotations

import math

import numpy as np


def relu(x):
    return np.maximum(x, 0)


class Plain:
    """The layers of a neck in plain loops; weights come from its state dict."""

    def __init__(self, neck, training):
        self.state = {key: value.double().numpy() for key, value in neck.state_dict().items()}
        self.training = training
        self.used = set()

    def __getitem__(self, name):
        self.used.add(name)
        return self.state[name]

    def bn(self, name, x):
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        else:
            mean, var = self[f'{name}.running_mean'], self[f'{name}.running_var']
        weight, bias = self[f'{name}.weight'], self[f'{name}.bias']
        out = np.empty_like(x)
        for c in range(x.shape[1]):
            out[:, c] = (x[:, c] - mean[c]) / math.sqrt(var[c] + 1e-5) * weight[c] + bias[c]
        return out

    def pointwise(self, name, x):
        weight = self[f'{name}.weight']
        assert weight.shape[2:] == (1, 1) and f'{name}.bias' not in self.state
        return np.einsum('oc,nchw->nohw', weight[:, :, 0, 0], x)

    def conv3(self, name, x, stride=1, depthwise=False):
        """3x3 with a frame of zeros."""
        weight = self[f'{name}.weight']
        assert weight.shape[2:] == (3, 3) and f'{name}.bias' not in self.state
        n, _, h, w = x.shape
        framed = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        out = np.zeros((n, len(weight), (h + stride - 1) // stride, (w + stride - 1) // stride))
        for i, j in np.ndindex(out.shape[2:]):
            window = framed[:, :, i * stride : i * stride + 3, j * stride : j * stride + 3]
            if depthwise:
                assert weight.shape[1] == 1
                out[:, :, i, j] = (window * weight[:, 0]).sum((2, 3))
            else:
                out[:, :, i, j] = np.einsum('ocyx,ncyx->no', weight, window)
        return out

    def A(self, name, x):
        """1x1 conv, BN, ReLU."""
        return relu(self.bn(f'{name}.1', self.pointwise(f'{name}.0', x)))

    def B(self, name, x, depth):
        """Depthwise, pointwise, BN; before each further one of these a ReLU."""
        for number in range(depth):
            at = 4 * number
            x = relu(x) if number else x
            x = self.conv3(f'{name}.{at}', x, depthwise=True)
            x = self.bn(f'{name}.{at + 2}', self.pointwise(f'{name}.{at + 1}', x))
        return x

    def node(self, name, x):
        """A factor and a shift for each channel, BN, ReLU."""
        weight, bias = self[f'{name}.0.weight'], self[f'{name}.0.bias']
        assert weight.shape == (x.shape[1], 1, 1, 1)
        x = x * weight[:, 0, 0, 0][:, None, None] + bias[:, None, None]
        return relu(self.bn(f'{name}.1', x))

    def fusion(self, name, *maps):
        weights = [max(float(w), 0.0) for w in self[name]]
        assert len(weights) == len(maps)
        return sum(w / (sum(weights) + 1e-6) * x for w, x in zip(weights, maps, strict=True))


def nearest(x, size):
    rows, columns = (
        [i * old // new for i in range(new)] for old, new in zip(x.shape[2:], size, strict=True)
    )
    return x[:, :, rows][:, :, :, columns]


def bilinear(x, size):
    """Pixels are areas: centres of old and new ones are at i + 1/2 (align_corners=False)."""
    for axis, new in zip((2, 3), size, strict=True):
        old, lines = x.shape[axis], []
        for i in range(new):
            at = max((i + 0.5) * old / new - 0.5, 0)
            low = min(int(at), old - 1)
            high, part = min(low + 1, old - 1), at - low
            lines.append((1 - part) * x.take(low, axis) + part * x.take(high, axis))
        x = np.stack(lines, axis)
    return x


def same_pool(x, strides):
    """3x3 maximum of a map in a frame of zeros, laid out by TensorFlow's rule for 'SAME'."""
    n, c, *size = x.shape
    out_size = [math.ceil(old / stride) for old, stride in zip(size, strides, strict=True)]
    starts = []
    for old, new, stride in zip(size, out_size, strides, strict=True):
        total = max((new - 1) * stride + 3 - old, 0)
        starts.append([o * stride - total // 2 for o in range(new)])  # the smaller half comes first
    out = np.full((n, c, *out_size), -np.inf)
    for i, j in np.ndindex(*out_size):
        for y in range(starts[0][i], starts[0][i] + 3):
            for z in range(starts[1][j], starts[1][j] + 3):
                inside = 0 <= y < size[0] and 0 <= z < size[1]
                value = x[:, :, y, z] if inside else np.zeros((n, c))
                out[:, :, i, j] = np.maximum(out[:, :, i, j], value)
    return out


def down_to(x, size):
    """Halved as often as needed: stride 2 between two levels, 1 where the size stays."""
    strides = [max(1, round(old / new)) for old, new in zip(x.shape[2:], size, strict=True)]
    return nearest(same_pool(x, strides), size)


def self_teacher_by_hand(neck, f, depth, training=False, constant=False):
    """Also returns L, L', P and T, each by its level from 1 on."""
    plain, n = Plain(neck, training), len(f)
    f = dict(enumerate(f, 1))

    def up_to(i):
        above = nearest(relu(P[i + 1]), f[i].shape[2:])
        return above if constant else plain.A(f'from_above.{i - 1}', above)

    def from_below(i):
        below = down_to(relu(T[i - 1]), f[i].shape[2:])
        return below if constant else plain.A(f'from_below.{i - 2}', below)

    L = {i: plain.A(f'lateral.{i - 1}', f[i]) for i in range(1, n + 1)}
    L2 = {i: plain.A(f'lateral2.{i - 2}', f[i]) for i in range(2, n + 1)}
    P = {n: L[n]}
    for i in range(n - 1, 0, -1):
        weights, block = f'top_down_weights.{i - 1}', f'top_down.{i - 1}'
        P[i] = plain.B(block, plain.fusion(weights, relu(L[i]), up_to(i)), depth)
    T = {1: P[1]}
    for i in range(2, n + 1):
        weights, block = f'bottom_up_weights.{i - 2}', f'bottom_up.{i - 2}'
        maps = [relu(L2[i]), relu(P[i]), from_below(i)] if i < n else [relu(L2[i]), from_below(i)]
        T[i] = plain.B(block, plain.fusion(weights, *maps), depth)
    return [relu(T[i]) for i in range(1, n + 1)], dict(L=L, L2=L2, P=P, T=T), plain.used


def pyramid_layer_by_hand(plain, name, P, bottom_up):
    n = len(P)
    U = {n: plain.node(f'{name}.top_down.{n - 1}', P[n])}
    for i in range(n - 1, 0, -1):
        resized = bilinear(U[i + 1], P[i].shape[2:])
        U[i] = plain.node(f'{name}.top_down.{i - 1}', P[i] + resized)
    if not bottom_up:
        return U
    out = {1: U[1]}
    for i in range(2, n + 1):
        resized = nearest(out[i - 1], P[i].shape[2:])
        out[i] = plain.node(f'{name}.bottom_up.{i - 2}', P[i] + U[i] + resized)
    return out


def seg_self_teacher_by_hand(neck, maps, num_layers, training=False):
    plain, P = Plain(neck, training), dict(enumerate(maps, 1))
    for number in range(num_layers):
        last = number == num_layers - 1
        P = pyramid_layer_by_hand(plain, f'layers.{number}', P, bottom_up=not last)
    return [P[i] for i in sorted(P)], plain.used


def bifpn_by_hand(neck, maps, num_layers, num_levels, training=False):
    plain, n = Plain(neck, training), len(maps)
    P = {i: plain.A(f'lateral.{i - 1}', x) for i, x in enumerate(maps, 1)}
    for i in range(n - 1, 0, -1):
        P[i] = P[i] + bilinear(P[i + 1], P[i].shape[2:])
    x = maps[-1]
    for number in range(num_levels - n):
        x = plain.conv3(f'further.{number}.0', x, stride=2)
        P[n + 1 + number] = x = relu(plain.bn(f'further.{number}.1', x))
    for number in range(num_layers):
        P = pyramid_layer_by_hand(plain, f'layers.{number}', P, bottom_up=True)
    return [P[i] for i in sorted(P)], plain.used
