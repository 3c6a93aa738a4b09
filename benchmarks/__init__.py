"""What distillation costs, measured: ``python -m benchmarks --help``."""
