"""Networks and preprocessors that a config may name."""

from mmkd_plugin.models import backbones, batch_augments, bcos, foundation, heads, necks

__all__ = ['backbones', 'batch_augments', 'bcos', 'foundation', 'heads', 'necks']
