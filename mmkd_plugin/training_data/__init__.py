"""Training data: looked at before training starts, and errors in it name the file."""

from mmkd_plugin.training_data.checks import check_data, warn_of_kept_state
from mmkd_plugin.training_data.errors import DataError, dataset_errors_named
from mmkd_plugin.training_data.expected import Expected
from mmkd_plugin.training_data.pipelines import CheckedPipeline
from mmkd_plugin.training_data.watching import (
    CheckTrainingData,
    build_unlabelled,
    watch_data,
    watch_test_data,
)

__all__ = [
    'CheckTrainingData',
    'CheckedPipeline',
    'DataError',
    'Expected',
    'build_unlabelled',
    'check_data',
    'dataset_errors_named',
    'warn_of_kept_state',
    'watch_data',
    'watch_test_data',
]
