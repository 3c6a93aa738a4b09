import pytest
import torch

from tests.conftest import needs_one_graph

pytest.register_assert_rewrite(
    'loss_contract', 'labelled', 'learning_contract', 'detection_contract'
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if 'one_graph' in item.name:
            item.add_marker(needs_one_graph)


@pytest.fixture(autouse=True, scope='package')
def one_thread():
    """The tensors here are tiny: on a busy machine, waking threads takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
