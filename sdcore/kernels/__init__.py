"""Native kernels for CPUs, which are optional: without them the same is computed in plain torch.

library.py       finds the library that was built for this processor
attention.cpp    attention without a table of scores;  attention.py  calls it

They are built with the package where a C++ compiler is there (GCC or Clang), have a
plain C interface, and know nothing of torch or Python: one build serves every release of both.
"""
