"""Damaged inputs of every kind. Each ends in a result or in one clear error: no traceback, no crash, no hang.

`python -m tests.fuzz --minutes 10` tries new seeds; `--seed N --kinds KIND --count 1` repeats one.
"""
