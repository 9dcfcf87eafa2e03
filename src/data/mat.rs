//! Reads a numeric vector out of a MATLAB 5 file (`.mat`), the format of Flowers-102's labels and splits.
//!
//! Such a file is a 128-byte header followed by elements, each a tag (type, length) and data padded to
//! eight bytes; variables are elements of type "matrix", usually inside one of type "compressed" (zlib).
//! Source: MathWorks, "MAT-File Format", level 5. Every length is checked against what is there before
//! it is used.

use super::DataError;
use crate::files;
use flate2::read::ZlibDecoder;
use std::io::Read;
use std::path::Path;

/// More bytes than any list of labels takes, in the file or inflated; keeps a damaged file from filling the
/// memory.
const MAX_BYTES: u64 = 4 << 20;

// Element types.
const INT8: u32 = 1;
const UINT8: u32 = 2;
const INT16: u32 = 3;
const UINT16: u32 = 4;
const INT32: u32 = 5;
const UINT32: u32 = 6;
const SINGLE: u32 = 7;
const DOUBLE: u32 = 9;
const INT64: u32 = 12;
const UINT64: u32 = 13;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;

/// The bytes of the file at `path`.
///
/// # Errors
/// A file that cannot be read, or is larger than any list of labels.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let bytes = files::read_up_to(path, MAX_BYTES).map_err(DataError::io(path, "read the file"))?;
    bytes.ok_or_else(|| DataError::mat_file(path, "the file is larger than any label list"))
}

/// The values of the numeric array `name` in the contents of a file, in the file's (column-major) order,
/// whatever their type.
///
/// # Errors
/// Contents that are not MATLAB 5, are damaged, or hold no numeric array of that name: what is wrong.
pub(super) fn find_array(bytes: &[u8], name: &str) -> Result<Vec<f64>, String> {
    let order = match bytes.get(124..128) {
        Some([0, 1, b'I', b'M']) => Order::Little,
        Some([1, 0, b'M', b'I']) => Order::Big,
        _ => return Err("not a MATLAB 5 file".to_owned()),
    };
    let mut reader = Elements { bytes: &bytes[128..], order };
    let mut left = MAX_BYTES;
    while let Some((kind, data)) = reader.next_element()? {
        let inflated;
        let (kind, data) = match kind {
            COMPRESSED => {
                inflated = inflate(data, left)?;
                left -= inflated.len() as u64;
                let mut inner = Elements { bytes: &inflated, order };
                inner.next_element()?.ok_or("a compressed variable is empty")?
            }
            _ => (kind, data),
        };
        if kind == MATRIX
            && let Some(values) = matrix(Elements { bytes: data, order }, name)?
        {
            return Ok(values);
        }
    }
    Err(format!("there is no variable {name:?} in it"))
}

/// Inflates to no more than `most` bytes.
fn inflate(data: &[u8], most: u64) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let read = ZlibDecoder::new(data).take(most + 1).read_to_end(&mut out);
    match read {
        Err(e) => Err(format!("its compressed data is damaged ({e})")),
        Ok(n) if n as u64 > most => Err("its compressed data is larger than any label list".to_owned()),
        Ok(_) => Ok(out),
    }
}

/// The values of a matrix element if it bears the name, else None.
fn matrix(mut parts: Elements<'_>, name: &str) -> Result<Option<Vec<f64>>, String> {
    let mut part = |what: &str| parts.next_element()?.ok_or_else(|| format!("a variable has no {what}"));
    part("flags")?;
    let (kind, dims) = part("dimensions")?;
    let dims = numbers(kind, dims, parts.order)?;
    let mut part = |what: &str| parts.next_element()?.ok_or_else(|| format!("a variable has no {what}"));
    if part("name")?.1 != name.as_bytes() {
        return Ok(None);
    }
    let (kind, data) = part("data")?;
    let values = numbers(kind, data, parts.order)?;
    if dims.iter().product::<f64>() != values.len() as f64 {
        return Err(format!("variable {name:?} has {} values, its dimensions say otherwise", values.len()));
    }
    Ok(Some(values))
}

#[derive(Clone, Copy)]
enum Order {
    Little,
    Big,
}

/// Walks the elements in a run of bytes.
struct Elements<'a> {
    bytes: &'a [u8],
    order: Order,
}

impl<'a> Elements<'a> {
    /// Type and data of the next element; None at the end.
    fn next_element(&mut self) -> Result<Option<(u32, &'a [u8])>, String> {
        const CUT: &str = "the file is cut short";
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let (tag, rest) = self.bytes.split_first_chunk::<4>().ok_or(CUT)?;
        let word = |bytes: [u8; 4]| match self.order {
            Order::Little => u32::from_le_bytes(bytes),
            Order::Big => u32::from_be_bytes(bytes),
        };
        let kind = word(*tag);
        // Up to four bytes of data may sit in the tag itself, their number in the upper half of the type.
        let small = (kind >> 16) as usize;
        if small > 0 {
            let data = rest.get(..4).ok_or(CUT)?.get(..small).ok_or("an element of its is malformed")?;
            self.bytes = &rest[4..];
            return Ok(Some((kind & 0xffff, data)));
        }
        let (length, rest) = rest.split_first_chunk::<4>().ok_or(CUT)?;
        let length = word(*length) as usize;
        let data = rest.get(..length).ok_or(CUT)?;
        // Compressed elements are not padded; the last padding of a file may be left out.
        let step = if kind == COMPRESSED { length } else { length.next_multiple_of(8) };
        self.bytes = rest.get(step..).unwrap_or_default();
        Ok(Some((kind, data)))
    }
}

/// Widens numbers of any type to f64.
fn numbers(kind: u32, data: &[u8], order: Order) -> Result<Vec<f64>, String> {
    macro_rules! read {
        ($t:ty) => {
            read_as(data, |bytes| match order {
                Order::Little => <$t>::from_le_bytes(bytes) as f64,
                Order::Big => <$t>::from_be_bytes(bytes) as f64,
            })
        };
    }
    match kind {
        INT8 => read!(i8),
        UINT8 => read!(u8),
        INT16 => read!(i16),
        UINT16 => read!(u16),
        INT32 => read!(i32),
        UINT32 => read!(u32),
        INT64 => read!(i64),
        UINT64 => read!(u64),
        SINGLE => read!(f32),
        DOUBLE => read!(f64),
        _ => Err(format!("a variable holds elements of type {kind}, which are not numbers")),
    }
}

fn read_as<const N: usize>(data: &[u8], convert: impl Fn([u8; N]) -> f64) -> Result<Vec<f64>, String> {
    let (chunks, rest) = data.as_chunks::<N>();
    if !rest.is_empty() {
        return Err("a variable ends in the middle of a number".to_owned());
    }
    Ok(chunks.iter().map(|&bytes| convert(bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::ZlibEncoder};
    use std::io::Write;

    /// A file of `parts` variables, each of `bytes` zeros and compressed.
    fn file(parts: usize, bytes: usize) -> Vec<u8> {
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::best());
        zlib.write_all(&INT8.to_le_bytes()).unwrap();
        zlib.write_all(&(bytes as u32 - 8).to_le_bytes()).unwrap();
        zlib.write_all(&vec![0; bytes - 8]).unwrap();
        let zlib = zlib.finish().unwrap();
        let element =
            [&COMPRESSED.to_le_bytes(), &(zlib.len() as u32).to_le_bytes(), zlib.as_slice()].concat();
        [[0; 124].as_slice(), &[0, 1, b'I', b'M'], &element.repeat(parts)].concat()
    }

    #[test]
    fn all_compressed_variables_together_have_a_limit() {
        let most = MAX_BYTES as usize;
        for (parts, bytes) in [(1, most), (4, most / 4)] {
            assert_eq!(find_array(&file(parts, bytes), "x").unwrap_err(), "there is no variable \"x\" in it");
        }
        for (parts, bytes) in [(1, most + 8), (5, most / 4), (1, 16 * most)] {
            let problem = find_array(&file(parts, bytes), "x").unwrap_err();
            assert!(problem.contains("larger than any label list"), "{parts} of {bytes}: {problem}");
        }
    }

    #[test]
    fn a_file_of_any_length_is_read_up_to_the_limit() {
        let long = tempfile::NamedTempFile::new().unwrap();
        long.as_file().set_len(MAX_BYTES).unwrap();
        assert_eq!(read(long.path()).unwrap().len() as u64, MAX_BYTES);
        long.as_file().set_len(MAX_BYTES + 1).unwrap();
        assert!(read(long.path()).unwrap_err().to_string().contains("larger than any label list"));
    }
}
