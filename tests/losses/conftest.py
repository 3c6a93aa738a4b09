import pytest
import torch

pytest.register_assert_rewrite(
    'loss_contract', 'labelled', 'learning_contract', 'detection_contract'
)


#: Torch before 2.2 cannot do this on a CPU; losses run eagerly there.
OLD_TORCH = torch.__version__.startswith(('2.0', '2.1.'))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items if OLD_TORCH else ():
        name, arguments = item.name, getattr(item, 'callspec', None)
        half = arguments is not None and arguments.params.get('dtype') is torch.float16
        if 'one_graph' in name:
            item.add_marker(pytest.mark.skip(reason='this torch compiles no loss in one graph'))
        elif ('autocast' in name and half) or 'gradient_scaler' in name:
            item.add_marker(pytest.mark.skip(reason='this torch has no float16 autocast on a CPU'))


@pytest.fixture(autouse=True, scope='package')
def one_thread():
    """The tensors here are tiny: on a busy machine, waking threads takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
