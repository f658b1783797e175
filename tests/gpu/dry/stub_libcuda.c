/* A driver's library that is there and does nothing: every call says "no device". */
#define CALL(name) int name(void) { return 100; }
CALL(cuInit) CALL(cuDriverGetVersion) CALL(cuDeviceGet) CALL(cuDeviceGetCount)
CALL(cuDeviceGetAttribute) CALL(cuDevicePrimaryCtxRetain) CALL(cuCtxGetCurrent)
CALL(cuCtxSetCurrent) CALL(cuCtxGetDevice) CALL(cuGetErrorName) CALL(cuGetErrorString)
CALL(cuGetProcAddress) CALL(cuGetProcAddress_v2) CALL(cuLaunchKernelEx) CALL(cuMemAddressFree)
CALL(cuMemAddressReserve) CALL(cuMemCreate) CALL(cuMemGetAllocationGranularity) CALL(cuMemMap)
CALL(cuMemRelease) CALL(cuMemSetAccess) CALL(cuMemUnmap) CALL(cuPointerGetAttribute)
CALL(cuStreamGetCtx) CALL(cuTensorMapEncodeTiled)
