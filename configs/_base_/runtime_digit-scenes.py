# The name by which configs of before 0.1.0 know it.
_base_ = './runtime_small.py'
