import pytest
import torch

pytest.register_assert_rewrite(
    'loss_contract', 'labelled', 'learning_contract', 'detection_contract'
)


OLD_TORCH = torch.__version__.startswith(('2.0', '2.1.'))


def lacking(item: pytest.Item) -> str | None:
    """What torch before 2.2 lacks on a CPU for a test; losses run eagerly there."""
    arguments = getattr(item, 'callspec', None)
    half = arguments is not None and arguments.params.get('dtype') is torch.float16
    if 'one_graph' in item.name:
        return 'this torch compiles no loss in one graph'
    if ('autocast' in item.name and half) or 'gradient_scaler' in item.name:
        return 'this torch has no float16 autocast on a CPU'
    if item.path.name == 'test_pair_wise.py' and half:
        return 'this torch has no max pooling of float16 on a CPU'
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items if OLD_TORCH else ():
        if lacking(item):
            item.add_marker(pytest.mark.skip(reason=lacking(item)))


@pytest.fixture(autouse=True, scope='package')
def one_thread():
    """The tensors here are tiny: on a busy machine, waking threads takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
