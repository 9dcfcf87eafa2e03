//! What a cubin says of the parameters of its kernels.
//!
//! The driver tells their sizes too, but their number only by an error for the one behind the last.

use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSection};
use std::collections::HashMap;
use std::sync::Arc;

/// A kernel's code is in a section of its own that begins so, and what the assembler knows of it in another.
const CODE: &str = ".text.";
const ABOUT: &str = ".nv.info.";

/// An attribute in the latter begins with its format and kind; only this format has more than two bytes behind them:
/// so many as these two say.
const SIZED: u8 = 4;
/// EIATTR_KPARAM_INFO: of one parameter a word, its number and its offset in two bytes each, and a word with its size
/// in bytes above 18 other bits.
const PARAMETER: u8 = 0x17;
const PARAMETER_BYTES: usize = 12;
const SIZE_SHIFT: u32 = 18;

/// The sizes in bytes of a kernel's parameters, in their order; none where the cubin does not tell, as that of a later
/// compiler may: from 12.9 to 13.5 they do.
pub type Sizes = Option<Arc<[u16]>>;

/// Those of every kernel in a cubin.
pub fn of_kernels(cubin: &[u8]) -> Result<HashMap<String, Sizes>, String> {
    let file = ElfFile64::<LittleEndian>::parse(cubin).map_err(|e| format!("it is no cubin: {e}"))?;
    let (mut kernels, mut known) = (Vec::new(), HashMap::new());
    for section in file.sections() {
        let name = section.name().map_err(|e| e.to_string())?;
        if let Some(kernel) = name.strip_prefix(CODE) {
            kernels.push(kernel.to_owned());
        } else if let Some(kernel) = name.strip_prefix(ABOUT) {
            let data = section.data().map_err(|e| e.to_string())?;
            known.insert(kernel.to_owned(), sizes(data));
        }
    }
    let with_sizes = |kernel: String| {
        let sizes = known.remove(&kernel).flatten();
        (kernel, sizes)
    };
    Ok(kernels.into_iter().map(with_sizes).collect())
}

/// None where the attributes are not as they are known to be, or say nothing of parameters.
fn sizes(mut attributes: &[u8]) -> Sizes {
    let mut sizes = Vec::new();
    while let Some((&[format, kind, low, high], rest)) = attributes.split_first_chunk() {
        let bytes = if format == SIZED { usize::from(u16::from_le_bytes([low, high])) } else { 0 };
        let (value, rest) = rest.split_at_checked(bytes)?;
        if kind == PARAMETER {
            let value: &[u8; PARAMETER_BYTES] = value.try_into().ok()?;
            let [_, _, _, _, number, number_high, _, _, word @ ..] = *value;
            let size = u32::from_le_bytes(word) >> SIZE_SHIFT;
            sizes.push((u16::from_le_bytes([number, number_high]), u16::try_from(size).ok()?));
        }
        attributes = rest;
    }
    // The last comes first, so far.
    sizes.sort_unstable();
    let in_order = sizes.iter().enumerate().all(|(index, (number, _))| index == usize::from(*number));
    (attributes.is_empty() && in_order && !sizes.is_empty())
        .then(|| sizes.into_iter().map(|(_, size)| size).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter(number: u16, size: u32) -> Vec<u8> {
        let mut bytes = vec![SIZED, PARAMETER, PARAMETER_BYTES as u8, 0, 0, 0, 0, 0];
        bytes.extend(number.to_le_bytes());
        bytes.extend([0, 0]);
        bytes.extend((size << SIZE_SHIFT | 0x1f000).to_le_bytes());
        bytes
    }

    #[test]
    fn parameters_are_found_among_other_attributes() {
        let others =
            [&[3, 0x1b, 0xff, 0][..], &[SIZED, 0x1c, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8], &[2, 0x4c, 1, 0]];
        let of = |parts: &[&[u8]]| sizes(&parts.concat());
        let (first, second) = (parameter(0, 8), parameter(1, 300));
        let both = of(&[others[0], &second, others[1], &first, others[2]]);
        assert_eq!(both.as_deref(), Some(&[8, 300][..]));
        assert_eq!(of(&others), None, "nothing is said of parameters");
        assert_eq!(of(&[&second]), None, "the first is missing");
        assert_eq!(of(&[&first, &second[..10]]), None, "it ends too early");
        assert_eq!(of(&[&first, &[3, 0x1b]]), None, "it ends within an attribute");
    }

    #[test]
    fn what_is_no_cubin_is_refused() {
        assert!(of_kernels(b"text").is_err_and(|problem| problem.starts_with("it is no cubin: ")));
    }
}
