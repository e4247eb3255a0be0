"""Kernels in C++ for the machine at hand, built once by its own compiler; everything they do, PyTorch does too.

A file `NAME.cpp` beside this one is a library of plain C functions over pointers and sizes. `library(NAME)` compiles it
for this very processor (a few seconds), keeps it in the user's cache, and loads it; where that cannot be done it is
None, `why_not()` says why in one line, and the caller takes its PyTorch path.
"""

from moonlet.ops.native.build import cache_folder, compiler_name, every_kernel, library, why_not, without_kernels

__all__ = ["cache_folder", "compiler_name", "every_kernel", "library", "why_not", "without_kernels"]
