from fastlmm_core._shapes cimport LaneKernels

cdef LaneKernels kernels  # the lane kernels in use
