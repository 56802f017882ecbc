"""What the workers of benchmarks/pools.py are given to do.

A module of its own: a worker that has not been forked imports it by its name, as it would a
program's, where a function of the main module would be sent along with every task by some.
"""

import os


def negative(number):
    return -number


def is_odd(number):
    return number % 2 == 1


def add(one, other):
    return one + other


def length(data):
    return len(data)


def same(data):
    return data


def worker(_):
    return os.getpid()
