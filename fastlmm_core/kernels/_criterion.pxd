from fastlmm_core.lanes.kernels cimport LaneKernels

cdef enum:
    PART = 256            # blocks of groups in a part, whose sums are added in order whatever the threads

cdef LaneKernels kernels  # the lane kernels in use
