"""Backbones: a ResNet of B-cos layers."""

from mmkd_plugin.backbones.bcos_resnet import BcosResNet

__all__ = ['BcosResNet']
