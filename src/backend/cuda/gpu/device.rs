//! The devices that the driver offers, and whether they will do.

use super::calls::cuda as cu;
use super::handles::{check, is};
use super::libraries;
use crate::backend::cuda::CudaError;
use crate::backend::cuda::driver::{DeviceInfo, Result};
use crate::tensor::DType;
use std::ffi::{CStr, c_char, c_int};

/// The oldest devices that NVRTC 13 compiles for.
const OLDEST: u32 = 75;
/// bf16 arithmetic begins here.
const OLDEST_BF16: u32 = 80;

/// The first on which a launch may begin while the one before it ends.
const FIRST_TO_OVERLAP: u32 = 90;

/// A device as the driver numbers it.
pub struct Device {
    pub raw: cu::CUdevice,
    /// `software` is left empty.
    pub info: DeviceInfo,
}

/// How many devices there are; starts the driver.
pub fn count() -> Result<usize> {
    libraries::driver()?;
    // SAFETY: 0 is the only value its argument may have.
    match unsafe { cu::cuInit(0) } {
        status if is(status, cu::CUresult::CUDA_ERROR_NO_DEVICE) => return Ok(0),
        status if is(status, cu::CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH) => {
            return Err(CudaError::Unsupported(
                "libcuda and the NVIDIA kernel module are of different versions; reboot after a driver \
                 update, and in a container install none of its own"
                    .into(),
            ));
        }
        status => check("cuInit", status)?,
    }
    let mut count: c_int = 0;
    // SAFETY: a place for the number; the driver is started.
    check("cuDeviceGetCount", unsafe { cu::cuDeviceGetCount(&mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

pub fn open(index: usize) -> Result<Device> {
    let count = count()?;
    if index >= count {
        return Err(CudaError::NoDevice { index, count });
    }
    let mut raw = 0;
    // SAFETY: a place for the number; there is a device of this index.
    check("cuDeviceGet", unsafe { cu::cuDeviceGet(&mut raw, index as c_int) })?;
    let mut memory = 0;
    // SAFETY: a place for the number, and a device from cuDeviceGet.
    check("cuDeviceTotalMem", unsafe { cu::cuDeviceTotalMem_v2(&mut memory, raw) })?;
    use cu::CUdevice_attribute as Attribute;
    let major = attribute(raw, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(raw, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let shared = attribute(raw, Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    let info = DeviceInfo {
        name: name(raw)?,
        index,
        compute_capability: major * 10 + minor,
        multiprocessors: attribute(raw, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_memory_per_block: shared as usize,
        cooperative: attribute(raw, Attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH)? != 0,
        overlap: major * 10 + minor >= FIRST_TO_OVERLAP && libraries::driver()?.is_at_least(12, 3),
        l2_cache: attribute(raw, Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
        memory,
        software: String::new(),
    };
    Ok(Device { raw, info })
}

fn name(device: cu::CUdevice) -> Result<String> {
    let mut name = [0 as c_char; 128];
    // SAFETY: the driver writes at most as many bytes as are there, the last one zero.
    check("cuDeviceGetName", unsafe { cu::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device) })?;
    // SAFETY: as above.
    Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
}

fn attribute(device: cu::CUdevice, attribute: cu::CUdevice_attribute) -> Result<u32> {
    let mut value: c_int = 0;
    // SAFETY: a place for the number, and a device from cuDeviceGet.
    check("cuDeviceGetAttribute", unsafe { cu::cuDeviceGetAttribute(&mut value, attribute, device) })?;
    Ok(u32::try_from(value).unwrap_or(0))
}

/// Refuses a device that is too old, for anything or for `dtype`.
pub fn check_capability(info: &DeviceInfo, dtype: DType) -> Result<()> {
    let (major, minor) = (info.compute_capability / 10, info.compute_capability % 10);
    let name = &info.name;
    if info.compute_capability < OLDEST {
        return Err(CudaError::Unsupported(format!(
            "{name} has compute capability {major}.{minor}; 7.5 (Turing) or later is needed"
        )));
    }
    if dtype == DType::BF16 && info.compute_capability < OLDEST_BF16 {
        return Err(CudaError::Unsupported(format!(
            "{name} has compute capability {major}.{minor}, and bf16 needs 8.0 or later; use f16"
        )));
    }
    Ok(())
}

/// Refuses a driver that is too old for the code that NVRTC and cuBLASLt bring.
pub fn check_driver() -> Result<()> {
    let driver = libraries::driver()?;
    for (name, package, library) in [
        ("NVRTC", "nvidia-cuda-nvrtc", libraries::nvrtc()?),
        ("cuBLASLt", "nvidia-cublas", libraries::cublaslt()?),
    ] {
        if driver.major < library.major {
            let (ours, theirs) = (&driver.version, &library.version);
            let (needed, had) = (library.major, driver.major);
            return Err(CudaError::Unsupported(format!(
                "the NVIDIA driver is of CUDA {ours} and {name} of CUDA {theirs}: update the driver to one \
                 of CUDA {needed}, or install {name} of CUDA {had} (pip install {package}-cu{had})"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_devices_are_refused_by_name() {
        let device = |compute_capability| DeviceInfo {
            name: "NVIDIA Old".into(),
            index: 0,
            compute_capability,
            multiprocessors: 1,
            shared_memory_per_block: 49152,
            cooperative: true,
            overlap: true,
            l2_cache: 1 << 20,
            memory: 1 << 30,
            software: String::new(),
        };
        let refusal = |cc, dtype| check_capability(&device(cc), dtype).err().map(|e| e.to_string());
        assert!(
            refusal(70, DType::F32).is_some_and(|text| text.contains("NVIDIA Old") && text.contains("7.0"))
        );
        assert!(refusal(75, DType::BF16).is_some_and(|text| text.contains("use f16")));
        assert_eq!(refusal(75, DType::F16), None);
        assert_eq!(refusal(90, DType::BF16), None);
    }
}
