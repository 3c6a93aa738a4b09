"""Foundation models as teachers: one file for the model, one for each library it can come from."""

from mmkd_plugin.models.foundation.model import FoundationModel

__all__ = ['FoundationModel']
