"""Small tensors: one thread is faster than two, and does not disturb what else the machine does."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

import torch

torch.set_num_threads(1)
