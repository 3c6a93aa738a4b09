"""The tests."""

import os

# Before torch is loaded: with AMX, oneDNN multiplies some narrow bf16 convolutions wrongly. A
# teacher is tried before it is used, and so takes fp32 there; tests compare values.
os.environ.setdefault('ONEDNN_MAX_CPU_ISA', 'AVX512_CORE_BF16')
