"""What distillation costs, measured: ``python -m benchmarks --help``."""

import os

os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # else the profiler prints each start and stop
