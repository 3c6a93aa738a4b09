"""Gradients that wait for their step: what a resumed run says of them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.running.tiny import tiny_run


@pytest.mark.parametrize(('counts', 'waits'), [(4, True), (2, False)])
def test_a_resumed_run_says_that_none_is_lost(
    counts: int, waits: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_run(tmp_path / 'whole', accumulate=counts).train()
    start = dict(load_from=str(tmp_path / 'whole/iter_2.pth'), resume=True)
    resumed = tiny_run(tmp_path / 'resumed', accumulate=counts, **start)
    resumed.logger.setLevel(logging.INFO)
    resumed.logger.addHandler(caplog.handler)
    resumed.train()
    said = 'the gradients that wait for a step of the optimizer are back: none is lost'
    assert (said in caplog.text) == waits
    assert ('gradient of some iterations is lost' in caplog.text) == waits
