# Compiled from lanes.pyx like _lanes_base, for other instructions.
from ._lanes_base import kernels as kernels
