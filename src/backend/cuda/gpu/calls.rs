//! The functions of NVIDIA's libraries that are called, in the files that [`libraries`](super::libraries) opened.
//!
//! Types and constants are cudarc's, and the compiler holds every signature here against cudarc's. Two things are
//! not. cudarc looks a library up by its unversioned name first, which a toolkit's development link or its stub
//! of the driver answers, whatever was opened before; here the opened file itself is asked. And statuses are
//! numbers: a newer library has some that cudarc's enumerations lack, and an enumeration must not hold those.

use libloading::Library;
use std::ffi::c_void;

/// Status of a call; 0 is success in all three libraries.
pub type Status = u32;

/// Where a function lies in `library`.
fn find(library: &Library, name: &'static str) -> Result<*const c_void, &'static str> {
    // SAFETY: a symbol is as large as a pointer, whatever it points to; it is not called as this type.
    let symbol = unsafe { library.get::<*const c_void>(name.as_bytes()) };
    symbol.ok().map(|symbol| *symbol).filter(|pointer| !pointer.is_null()).ok_or(name)
}

/// A module with cudarc's types that are named, and the functions of one library. A function that is called before
/// its library is opened returns what `before` says. `or` gives the name in older libraries, of the same signature.
macro_rules! library {
    (
        $(#[$about:meta])*
        mod $module:ident from $($binding:ident)::+, status $status:ident, before $before:literal;
        use $($item:ident),+;
        $(fn $name:ident $(or $older:ident)? ($($argument:ident: $type:ty),* $(,)?);)+
        besides
        $(fn $other:ident($($other_argument:ident: $other_type:ty),*) -> $result:ty, before $nothing:expr;)+
    ) => {
        $(#[$about])*
        #[allow(non_snake_case)]
        pub mod $module {
            use super::{Status, find};
            use libloading::Library;
            use std::ffi::*;
            use std::sync::OnceLock;
            use $($binding)::+ as binding;
            pub use binding::{$($item),+};

            // cudarc's signatures.
            $(const _: unsafe fn($($type),*) -> binding::$status = binding::$name;)+

            /// Where the functions lie.
            #[derive(Clone, Copy)]
            pub struct Table {
                $(pub $name: unsafe extern "C" fn($($type),*) -> Status,)+
                $(pub $other: unsafe extern "C" fn($($other_type),*) -> $result,)+
            }

            static TABLE: OnceLock<Table> = OnceLock::new();

            impl Table {
                /// Finds all of them, or the name of the first that is missing.
                pub fn of(library: &Library) -> Result<Self, &'static str> {
                    // SAFETY: the functions of these names have the signatures that cudarc has of them, but for
                    // the status, which is a number of the same size; the library stays open as long as they
                    // are used.
                    unsafe {
                        Ok(Table {
                            $($name: {
                                let found = find(library, stringify!($name));
                                $(let found = found.or_else(|_| find(library, stringify!($older)));)?
                                std::mem::transmute::<*const c_void, unsafe extern "C" fn($($type),*) -> Status>(
                                    found?,
                                )
                            },)+
                            $($other: std::mem::transmute::<
                                *const c_void,
                                unsafe extern "C" fn($($other_type),*) -> $result,
                            >(find(library, stringify!($other))?),)+
                        })
                    }
                }

                /// From here on the module's functions are these.
                pub fn keep(self) {
                    // Another thread can only have kept the same.
                    let _ = TABLE.set(self);
                }
            }

            // A version is asked for before its library is kept.
            $(
                #[allow(clippy::too_many_arguments, dead_code, reason = "as many as the library's function has")]
                pub unsafe fn $name($($argument: $type),*) -> Status {
                    match TABLE.get() {
                        // SAFETY: as the caller promises.
                        Some(table) => unsafe { (table.$name)($($argument),*) },
                        None => $before,
                    }
                }
            )+
            $(
                #[allow(dead_code)]
                pub unsafe fn $other($($other_argument: $other_type),*) -> $result {
                    match TABLE.get() {
                        // SAFETY: as the caller promises.
                        Some(table) => unsafe { (table.$other)($($other_argument),*) },
                        None => $nothing,
                    }
                }
            )+
        }
    };
}

library! {
    /// The driver, libcuda.
    mod cuda from cudarc::driver::sys, status CUresult, before 3;
    use CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUevent_flags, CUfunction,
        CUfunction_attribute, CUgraph, CUgraphExec, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
        CUlaunchConfig, CUmodule, CUresult, CUstream, CUstreamCaptureMode,
        CUstream_flags;
    fn cuCtxSetCurrent(context: CUcontext);
    fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    fn cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice);
    fn cuDeviceGetCount(count: *mut c_int);
    fn cuDeviceGetName(name: *mut c_char, bytes: c_int, device: CUdevice);
    fn cuDevicePrimaryCtxRelease_v2(device: CUdevice);
    fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
    fn cuDriverGetVersion(version: *mut c_int);
    fn cuEventCreate(event: *mut CUevent, flags: c_uint);
    fn cuEventDestroy_v2(event: CUevent);
    fn cuEventElapsedTime_v2 or cuEventElapsedTime (milliseconds: *mut f32, start: CUevent, end: CUevent);
    fn cuEventQuery(event: CUevent);
    fn cuEventRecord(event: CUevent, stream: CUstream);
    fn cuEventSynchronize(event: CUevent);
    fn cuFuncGetAttribute(value: *mut c_int, attribute: CUfunction_attribute, function: CUfunction);
    fn cuFuncSetAttribute(function: CUfunction, attribute: CUfunction_attribute, value: c_int);
    fn cuGraphDestroy(graph: CUgraph);
    fn cuGraphExecDestroy(executable: CUgraphExec);
    fn cuGraphInstantiateWithFlags(executable: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong);
    fn cuGraphLaunch(executable: CUgraphExec, stream: CUstream);
    fn cuGraphUpload(executable: CUgraphExec, stream: CUstream);
    fn cuInit(flags: c_uint);
    fn cuLaunchCooperativeKernel(
        function: CUfunction,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared: c_uint,
        stream: CUstream,
        arguments: *mut *mut c_void,
    );
    fn cuLaunchKernel(
        function: CUfunction,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared: c_uint,
        stream: CUstream,
        arguments: *mut *mut c_void,
        extra: *mut *mut c_void,
    );
    fn cuLaunchKernelEx(
        config: *const CUlaunchConfig,
        function: CUfunction,
        arguments: *mut *mut c_void,
        extra: *mut *mut c_void,
    );
    fn cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize);
    fn cuMemFreeHost(address: *mut c_void);
    fn cuMemFree_v2(address: CUdeviceptr);
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    fn cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, flags: c_uint);
    fn cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    fn cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    fn cuMemsetD8Async(to: CUdeviceptr, value: c_uchar, bytes: usize, stream: CUstream);
    fn cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    fn cuModuleLoadData(module: *mut CUmodule, image: *const c_void);
    fn cuModuleUnload(module: CUmodule);
    fn cuProfilerStart();
    fn cuProfilerStop();
    fn cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode);
    fn cuStreamCreate(stream: *mut CUstream, flags: c_uint);
    fn cuStreamDestroy_v2(stream: CUstream);
    fn cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
    fn cuStreamSynchronize(stream: CUstream);
    fn cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
    besides
    fn cuGetErrorName(status: Status, text: *mut *const c_char) -> Status, before 3;
    fn cuGetErrorString(status: Status, text: *mut *const c_char) -> Status, before 3;
}

library! {
    /// The run-time compiler.
    mod nvrtc from cudarc::nvrtc::sys, status nvrtcResult, before 11;
    use nvrtcProgram, nvrtcResult;
    fn nvrtcCompileProgram(program: nvrtcProgram, count: c_int, options: *const *const c_char);
    fn nvrtcCreateProgram(
        program: *mut nvrtcProgram,
        text: *const c_char,
        name: *const c_char,
        headers: c_int,
        header_texts: *const *const c_char,
        header_names: *const *const c_char,
    );
    fn nvrtcDestroyProgram(program: *mut nvrtcProgram);
    fn nvrtcGetCUBIN(program: nvrtcProgram, cubin: *mut c_char);
    fn nvrtcGetCUBINSize(program: nvrtcProgram, bytes: *mut usize);
    fn nvrtcGetNumSupportedArchs(count: *mut c_int);
    fn nvrtcGetProgramLog(program: nvrtcProgram, log: *mut c_char);
    fn nvrtcGetProgramLogSize(program: nvrtcProgram, bytes: *mut usize);
    fn nvrtcGetSupportedArchs(architectures: *mut c_int);
    fn nvrtcVersion(major: *mut c_int, minor: *mut c_int);
    besides
    fn nvrtcGetErrorString(status: Status) -> *const c_char, before std::ptr::null();
}

library! {
    /// Matrix products.
    mod cublaslt from cudarc::cublaslt::sys, status cublasStatus_t, before 1;
    use cublasComputeType_t, cublasLtEpilogue_t, cublasLtHandle_t, cublasLtMatmulAlgoConfigAttributes_t,
        cublasLtMatmulAlgo_t, cublasLtMatmulDescAttributes_t, cublasLtMatmulDesc_t,
        cublasLtMatmulHeuristicResult_t, cublasLtMatmulPreferenceAttributes_t, cublasLtMatmulPreference_t,
        cublasLtMatrixLayout_t, cublasLtReductionScheme_t, cudaDataType_t, cudaStream_t;
    fn cublasLtCreate(handle: *mut cublasLtHandle_t);
    fn cublasLtDestroy(handle: cublasLtHandle_t);
    fn cublasLtMatmul(
        handle: cublasLtHandle_t,
        operation: cublasLtMatmulDesc_t,
        alpha: *const c_void,
        a: *const c_void,
        a_layout: cublasLtMatrixLayout_t,
        b: *const c_void,
        b_layout: cublasLtMatrixLayout_t,
        beta: *const c_void,
        c: *const c_void,
        c_layout: cublasLtMatrixLayout_t,
        d: *mut c_void,
        d_layout: cublasLtMatrixLayout_t,
        algorithm: *const cublasLtMatmulAlgo_t,
        workspace: *mut c_void,
        workspace_bytes: usize,
        stream: cudaStream_t,
    );
    fn cublasLtMatmulAlgoCheck(
        handle: cublasLtHandle_t,
        operation: cublasLtMatmulDesc_t,
        a_layout: cublasLtMatrixLayout_t,
        b_layout: cublasLtMatrixLayout_t,
        c_layout: cublasLtMatrixLayout_t,
        d_layout: cublasLtMatrixLayout_t,
        algorithm: *const cublasLtMatmulAlgo_t,
        result: *mut cublasLtMatmulHeuristicResult_t,
    );
    fn cublasLtMatmulAlgoConfigGetAttribute(
        algorithm: *const cublasLtMatmulAlgo_t,
        attribute: cublasLtMatmulAlgoConfigAttributes_t,
        value: *mut c_void,
        bytes: usize,
        written: *mut usize,
    );
    fn cublasLtMatmulAlgoGetHeuristic(
        handle: cublasLtHandle_t,
        operation: cublasLtMatmulDesc_t,
        a_layout: cublasLtMatrixLayout_t,
        b_layout: cublasLtMatrixLayout_t,
        c_layout: cublasLtMatrixLayout_t,
        d_layout: cublasLtMatrixLayout_t,
        preference: cublasLtMatmulPreference_t,
        most: c_int,
        results: *mut cublasLtMatmulHeuristicResult_t,
        count: *mut c_int,
    );
    fn cublasLtMatmulDescCreate(
        operation: *mut cublasLtMatmulDesc_t,
        compute: cublasComputeType_t,
        scale: cudaDataType_t,
    );
    fn cublasLtMatmulDescDestroy(operation: cublasLtMatmulDesc_t);
    fn cublasLtMatmulDescSetAttribute(
        operation: cublasLtMatmulDesc_t,
        attribute: cublasLtMatmulDescAttributes_t,
        value: *const c_void,
        bytes: usize,
    );
    fn cublasLtMatmulPreferenceCreate(preference: *mut cublasLtMatmulPreference_t);
    fn cublasLtMatmulPreferenceDestroy(preference: cublasLtMatmulPreference_t);
    fn cublasLtMatmulPreferenceSetAttribute(
        preference: cublasLtMatmulPreference_t,
        attribute: cublasLtMatmulPreferenceAttributes_t,
        value: *const c_void,
        bytes: usize,
    );
    fn cublasLtMatrixLayoutCreate(
        layout: *mut cublasLtMatrixLayout_t,
        kind: cudaDataType_t,
        rows: u64,
        columns: u64,
        stride: i64,
    );
    fn cublasLtMatrixLayoutDestroy(layout: cublasLtMatrixLayout_t);
    besides
    fn cublasLtGetStatusName(status: Status) -> *const c_char, before std::ptr::null();
    fn cublasLtGetVersion() -> usize, before 0;
}
