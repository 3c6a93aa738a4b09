import pytest
import torch

pytest.register_assert_rewrite(
    'loss_contract', 'labelled', 'learning_contract', 'detection_contract'
)


@pytest.fixture(autouse=True, scope='package')
def one_thread():
    """The tensors here are tiny: on a busy machine, waking threads takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
