from fastlmm_core.lanes.kernels cimport LaneKernels

cdef LaneKernels kernels  # the lane kernels in use
