"""Kernels written by hand to try barriers: every barrier in them is needed.

Each is a text, the sizes of its buffers (inputs first) and what it computes, on whole numbers, so
that results are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

REVERSED = """
__global__ void reversed(const float* x, float* y) {
  __shared__ float s[64];
  int at = blockIdx.x * 64 + threadIdx.x;
  s[threadIdx.x] = x[at];
  __syncthreads();
  y[at] = s[63 - threadIdx.x];
}
void run(const float* x, float* y) { reversed<<<3, 64>>>(x, y); }
"""

TREE = """
__global__ void tree(const float* x, float* y) {
  __shared__ float s[32];
  int t = threadIdx.x;
  s[t] = x[blockIdx.x * 32 + t];
  __syncthreads();
  for (int half = 16; half > 0; half >>= 1) {
    if (t < half) s[t] += s[t + half];
    __syncthreads();
  }
  if (t == 0) { y[blockIdx.x] = s[0]; }
}
void run(const float* x, float* y) { tree<<<5, 32>>>(x, y); }
"""

# A value that changes, one that does not, and an array, all private and used across barriers.
DIFFUSION = """
__global__ void diffusion(const float* x, float* y) {
  __shared__ float s[2][20];
  float trace[3];
  int t = threadIdx.x, left = (t + 19) % 20;
  float sum = x[blockIdx.x * 20 + t];
  s[0][t] = sum;
  __syncthreads();
  for (int step = 0; step < 3; step++) {
    float mine = s[0][left];
    trace[step] = mine;
    __syncthreads();
    sum += 2.0f * mine;
    s[0][t] = sum;
    __syncthreads();
  }
  s[1][t] = trace[0] + trace[1] * 3.0f + trace[2] * 5.0f;
  __syncthreads();
  y[blockIdx.x * 20 + t] = s[1][left] + sum;
}
void run(const float* x, float* y) { diffusion<<<2, 20>>>(x, y); }
"""

# A barrier in a branch that whole blocks take or not.
EVERY_OTHER = """
__global__ void every_other(const float* x, float* y) {
  __shared__ float s[8];
  int t = threadIdx.x;
  s[t] = x[blockIdx.x * 8 + t];
  if (blockIdx.x % 2 == 0) {
    __syncthreads();
    y[blockIdx.x * 8 + t] = s[7 - t];
  } else {
    y[blockIdx.x * 8 + t] = s[t] * 10.0f;
  }
}
void run(const float* x, float* y) { every_other<<<4, 8>>>(x, y); }
"""

# Two axes of threads, a shared array of two, blocks at the edge half outside.
TRANSPOSED = """
#include <cuda_runtime.h>
extern "C" __global__ void __launch_bounds__(12) transposed(
    const float* __restrict__ x, float* __restrict__ y) {
  __shared__ float tile[4][3];
  const int row = blockIdx.y * 4 + threadIdx.y;  // of x, which is 10 by 7
  const int column = blockIdx.x * 3 + threadIdx.x;
  if (row < 10 && column < 7) tile[threadIdx.y][threadIdx.x] = x[row * 7 + column];
  __syncthreads();
  int flat = threadIdx.y * 3 + threadIdx.x;
  int i = blockIdx.y * 4 + flat % 4, j = blockIdx.x * 3 + flat / 4;
  if (i < 10 && j < 7) y[j * 10 + i] = tile[flat % 4][flat / 4];
}
void run(const float* x, float* y) {
  transposed<<<dim3(3, 3), dim3(3, 4)>>>(x, y);
}
"""

# Nothing shared: a guard that returns, and a kernel launched twice on other buffers.
GUARDED = """
__global__ void twice(const float* a, float* b) {
  int i = blockIdx.x * 16 + threadIdx.x;
  if (i >= 37) return;
  float v = a[i];
  if (v > 3.0f) { v *= 2.0f; } else { v = -v; }
  b[i] = max(v, (float)i) - (i % 3 == 0 ? 1.0f : 0.0f);
}
void run(const float* x, float* y, float* between) {
  twice<<<3, 16>>>(x, between);
  twice<<<3, 16>>>(between, y);
}
"""


def _diffusion(x: Any) -> Any:
    found = []
    for row in x.reshape(2, 20):
        total, s, trace = row.copy(), row.copy(), []
        for _ in range(3):
            mine = np.roll(s, 1)
            trace.append(mine)
            total = total + 2 * mine
            s = total
        found.append(np.roll(trace[0] + 3 * trace[1] + 5 * trace[2], 1) + total)
    return np.concatenate(found)


def _every_other(x: Any) -> Any:
    rows = x.reshape(4, 8).copy()
    rows[::2] = rows[::2, ::-1]
    rows[1::2] *= 10
    return rows.reshape(-1)


def _twice(x: Any) -> Any:
    i = np.arange(37)
    for _ in range(2):
        x = np.maximum(np.where(x > 3, 2 * x, -x), i) - (i % 3 == 0)
    return x


CRAFTED: dict[str, tuple[str, list[int], Callable[[Any], Any]]] = {
    "reversed": (REVERSED, [192, 192], lambda x: x.reshape(3, 64)[:, ::-1].reshape(-1)),
    "tree": (TREE, [160, 5], lambda x: x.reshape(5, 32).sum(1)),
    "diffusion": (DIFFUSION, [40, 40], _diffusion),
    "every other": (EVERY_OTHER, [32, 32], _every_other),
    "transposed": (TRANSPOSED, [70, 70], lambda x: x.reshape(10, 7).T.reshape(-1)),
    "guarded": (GUARDED, [37, 37, 37], _twice),
}
