"""ShardedRunner: what is trained is split over the processes of a run (FSDP2)."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import broadcast, get_world_size, is_main_process
from mmengine.hooks import EMAHook
from mmengine.model import convert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.utils import digit_version
from torch import Tensor, nn

from mmkd_plugin.registry import RUNNERS
from mmkd_plugin.words import some

#: The first torch whose FSDP2 takes the mean of the gradients on the CPU, where the tests of it
#: run. Those of 2.7 and 2.8 add them up there.
OLDEST = '2.10'

#: The other way, for messages.
INSTEAD = 'Leave `runner_type` out: several GPUs train with DDP'

#: Moments from which on hooks may run the student by itself: metrics, pictures, the report.
RUN_PARTS = ('before_val', 'before_test', 'after_train')


@RUNNERS.register_module()
class ShardedRunner(Runner):
    """mmengine's ``Runner``, in which each process holds a part of what is trained.

    It takes the place of DDP: parameters, their gradients and the states of the optimizer are split
    over all processes by FSDP2 (``torch.distributed.fsdp.fully_shard``). The model is one group:
    it is whole in each process from the start of a forward pass to the end of the backward pass.
    Frozen teachers, buffers and data preprocessors are whole in each process all the time.

    A checkpoint holds whole tensors, as that of DDP does. Each of the two can go on from a
    checkpoint of the other. In one process it is a plain ``Runner``.

    Raises:
        ValueError: If torch is older than 2.10, a parameter is a single number, such as the scales
            of FCOS and GFL, or the config has a ``model_wrapper_cfg`` or an ``EMAHook``.

    Examples:
        >>> runner_type = 'mmkd_plugin.ShardedRunner'  # a line of the config
    """

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Checks that a model can be split, which happens when its training starts."""
        if not self._splits():
            return super().wrap_model(model_wrapper_cfg, model)
        if model_wrapper_cfg is not None:
            raise ValueError('model_wrapper_cfg: ShardedRunner wraps no model; leave it out')
        if digit_version(torch.__version__) < digit_version(OLDEST):
            raise ValueError(
                f'runner_type=ShardedRunner needs torch {OLDEST} or later, and this is '
                f'{torch.__version__}. {INSTEAD}'
            )
        single = [name for name, value in model.named_parameters() if not value.dim()]
        if single:
            raise ValueError(
                f'runner_type=ShardedRunner: {some(single, 3)} of the model are single numbers, '
                f'which FSDP2 cannot split. {INSTEAD}'
            )
        model = model.to(get_device())
        if self.cfg.get('sync_bn') is not None:
            model = convert_sync_batchnorm(model, self.cfg.sync_bn)
        return model

    def register_hooks(self, *args: Any, **kwargs: Any) -> None:
        """Refuses an average of the weights, which mmengine takes of a copy of the model."""
        super().register_hooks(*args, **kwargs)
        if self._splits() and any(isinstance(hook, EMAHook) for hook in self.hooks):
            raise ValueError(
                'custom_hooks: EMAHook copies the model, which ShardedRunner has in parts. Take '
                f'the hook out, or keep it without this runner. {INSTEAD}'
            )

    def _splits(self) -> bool:
        return self.distributed and self._train_dataloader is not None

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Splits the model, and builds what mmengine builds for its parts."""
        if not self._splits() or _is_split(self.model):
            return super().build_optim_wrapper(optim_wrapper)
        self._split_model()
        built = super().build_optim_wrapper(optim_wrapper)
        for one in [built] if isinstance(built, OptimWrapper) else built.values():
            one.optimizer.register_state_dict_post_hook(_make_state_whole)
            one.optimizer.register_load_state_dict_pre_hook(_split_state)
        return built

    def _split_model(self) -> None:
        from torch.distributed import init_device_mesh  # both are not there in torch 2.1
        from torch.distributed.fsdp import fully_shard

        super()._init_model_weights()  # parts cannot be initialised
        for value in (*self.model.parameters(), *self.model.buffers()):
            broadcast(value.data)  # as DDP does: connectors and memories too
        fully_shard(self.model, mesh=init_device_mesh(get_device(), (get_world_size(),)))
        for module in self.model.modules():
            module._register_state_dict_hook(_make_whole)
            module.register_load_state_dict_pre_hook(_split_loaded)

    def _init_model_weights(self) -> None:
        """Leaves a model that is split as it is; it was initialised before."""
        if not self._splits():
            super()._init_model_weights()

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Calls the hooks. The first process alone may run parts of the model in some of them."""
        if fn_name in RUN_PARTS:
            gather(self.model)
        super().call_hook(fn_name, **kwargs)

    def save_checkpoint(self, *args: Any, save_optimizer: bool = True, **kwargs: Any) -> None:
        """Saves as mmengine does, in the first process; the others send their parts."""
        if not is_main_process():
            self.model.state_dict()
            if save_optimizer:
                self.optim_wrapper.state_dict()
        super().save_checkpoint(*args, save_optimizer=save_optimizer, **kwargs)


def gather(model: nn.Module) -> None:
    """Makes a model whole for a while, so that one process can run parts of it; all call this.

    It lasts until a state dict is taken or the next step of training ends.

    Args:
        model (nn.Module): Any model. Nothing happens to one that is not split.
    """
    if _is_split(model):
        model.unshard()


def whole(value: Tensor) -> Tensor:
    """The whole of a tensor of which each process may hold a part; all of them call it then.

    Args:
        value (Tensor): Any tensor.

    Returns:
        Tensor: The same tensor if it is no part.
    """
    return value.full_tensor() if _is_part(value) else value


def part_like(value: Tensor, other: Tensor) -> Tensor:
    """This process's part of a tensor, split as another one is; all processes call it then.

    Args:
        value (Tensor): A whole tensor, the same in all processes.
        other (Tensor): A tensor of that shape.

    Returns:
        Tensor: The same tensor if the other one is no part.
    """
    if not _is_part(other) or _is_part(value):
        return value
    value = value.to(other.device)
    return torch.distributed.tensor.distribute_tensor(value, other.device_mesh, other.placements)


def _is_split(model: nn.Module) -> bool:
    return hasattr(model, 'unshard')


def _is_part(value: Any) -> bool:
    return hasattr(value, 'full_tensor')


def _make_whole(module: nn.Module, state: dict, prefix: str, _: dict) -> None:
    """Hook of a module: its own parameters are whole in a state dict."""
    for name in module._parameters:
        if prefix + name in state:
            state[prefix + name] = whole(state[prefix + name])


def _split_loaded(module: nn.Module, state: dict, prefix: str, *_: Any) -> None:
    """Hook of a module: what is loaded into its own parameters is split as they are."""
    for name, parameter in module._parameters.items():
        value = state.get(prefix + name)
        if value is not None and value.shape == parameter.shape:
            state[prefix + name] = part_like(value, parameter)


def _make_state_whole(_: torch.optim.Optimizer, state: dict) -> None:
    """Hook of an optimizer: what it keeps of each parameter is whole in a state dict."""
    state['state'] = {
        number: {key: whole(value) for key, value in held.items()}
        for number, held in state['state'].items()
    }


def _split_state(optimizer: torch.optim.Optimizer, state: dict) -> dict:
    """Hook of an optimizer: what is loaded for each parameter is split as that is."""
    parameters = {
        number: parameter
        for ours, theirs in zip(optimizer.param_groups, state['param_groups'])
        for parameter, number in zip(ours['params'], theirs['params'])
    }
    found = {
        number: {
            key: part_like(value, parameters[number])
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for key, value in held.items()
        }
        for number, held in state['state'].items()
    }
    return {**state, 'state': found}
