from __future__ import annotations

import torch

from mmkd_plugin.losses.numerics.maps import sum_over_maps


def test_sum_over_maps_pairs_in_order():
    maps = [torch.tensor(float(i)) for i in (1, 2, 3)]
    total = sum_over_maps(lambda s, t: s * 10 + t, maps, tuple(reversed(maps)))
    assert total.item() == 66
    assert sum_over_maps(lambda s, t: s - t, maps[2], [maps[0]]).item() == 2
