"""Verifiers named as `graders:<function>` in the tests; what a user's own might do wrong."""

import ctypes
import os
import sys
import time


def right(answer, gold, metadata):
    return float(answer == gold)


def half(answer, gold, metadata):
    return 0.5


def as_told(answer, gold, metadata):
    return metadata["reward"]


def not_a_number(answer, gold, metadata):
    return float("nan")


def spins_in_c(answer, gold, metadata):
    return float(len(str(7 ** (10**9))))


def sleeps(answer, gold, metadata):
    time.sleep(3600)


def leaves(answer, gold, metadata):
    os._exit(int(gold))


def quits(answer, gold, metadata):
    sys.exit("a verifier that ends its process")


def segfaults(answer, gold, metadata):
    ctypes.string_at(0)


def raises(answer, gold, metadata):
    raise KeyError(gold)


def rambles(answer, gold, metadata):
    raise ValueError("a" * 1000 + "\nand on")


def fills_memory(answer, gold, metadata):
    return float(len(bytearray(6 * 2**30)))


def by_mood(answer, gold, metadata):
    """Does to its worker what the answer says; else grades."""
    faults = {"spin": spins_in_c, "sleep": sleeps, "raise": raises}
    return faults.get(answer, right)(answer, gold, metadata)


def imports_torch(answer, gold, metadata):
    return float("torch" in sys.modules)


def process_id(answer, gold, metadata):
    return float(os.getpid())


def prints(answer, gold, metadata):
    print("noise on standard output")
    return 1.0


def huge(answer, gold, metadata):
    return 1e308
