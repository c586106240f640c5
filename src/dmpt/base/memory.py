"""What the C library does with freed memory."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST = 32 << 20  # the most that glibc takes


def keep_freed_memory() -> None:
    """Freed tensors stay with the process, where the C library is glibc; others are left as they are.

    A forward pass frees and asks for the same tens of MB at every layer. By default glibc gives them back to the system
    in between, and each is mapped and zeroed anew: some tenth to fifth of a tower's time at inference.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc; Windows takes no None
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST)
    mallopt(_TRIM_THRESHOLD, -1)  # never
