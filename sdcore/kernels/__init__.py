"""Native kernels for CPUs, which are optional: without them the same is computed in plain torch.

library.py        finds the library that was built for this processor
attention.cpp     attention without a table of scores;          attention.py    calls it
convolution.cpp   3 x 3, a quarter of the multiplications;     convolution.py  calls it
vectors.h         vectors, blocks of memory, threads
processor.cpp     whether a processor has a library's instructions

They are built with the package where a C++ compiler is there (GCC or Clang), have a
plain C interface, and know nothing of torch or Python: one build serves every release of both.
"""
