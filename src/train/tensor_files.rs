//! Safetensors files of ours and of PEFT.

use super::{Result, TrainError};
use crate::files::{Staged, share};
use crate::tensor::{DType, Shape, Tensor, View};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;

/// Named tensors with text metadata as a safetensors file for `path`.
pub fn stage_tensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: HashMap<String, String>,
) -> Result<Staged> {
    let mut bytes = safetensors::serialize(views(path, tensors)?, Some(metadata))
        .map_err(|e| TrainError::file(path, format!("cannot be stored ({e})")))?;
    sort_metadata(&mut bytes);
    Ok(Staged::new(path, &bytes)?)
}

/// Puts the metadata, which a hash map gives in any order, into that of the names: the same contents are the same
/// bytes.
fn sort_metadata(file: &mut [u8]) {
    let start = size_of::<u64>() + b"{\"__metadata__\":".len();
    let Some(text) = file.get_mut(start..) else { return };
    let mut entries = serde_json::Deserializer::from_slice(text).into_iter::<BTreeMap<String, String>>();
    let Some(Ok(sorted)) = entries.next() else { return };
    let end = entries.byte_offset();
    if let Ok(sorted) = serde_json::to_vec(&sorted)
        && sorted.len() == end
    {
        text[..end].copy_from_slice(&sorted);
    }
}

/// Writes a safetensors file straight to `path`, without a staged copy: for files too large to be in memory twice, in a
/// folder that nobody reads yet.
pub(crate) fn write_tensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: HashMap<String, String>,
) -> Result<()> {
    safetensors::serialize_to_file(views(path, tensors)?, Some(metadata), path)
        .map_err(|e| TrainError::file(path, format!("cannot be stored ({e}); check the free space")))?;
    // It is made for its owner alone.
    share(path).map_err(TrainError::io(path, "write the file"))?;
    let file = File::options().append(true).open(path).map_err(TrainError::io(path, "write the file"))?;
    file.sync_all().map_err(TrainError::io(path, "write the file"))
}

fn views<'a>(path: &Path, tensors: &'a BTreeMap<String, Tensor>) -> Result<Vec<(&'a str, TensorView<'a>)>> {
    let view = |(name, tensor): (&'a String, &'a Tensor)| {
        let shape = tensor.shape().dims().to_vec();
        TensorView::new(file_dtype(tensor.dtype()), shape, tensor.bytes())
            .map(|view| (name.as_str(), view))
            .map_err(|e| TrainError::file(path, format!("tensor {name} cannot be stored ({e})")))
    };
    tensors.iter().map(view).collect()
}

fn file_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::U32 => Dtype::U32,
        DType::U8 => Dtype::U8,
    }
}

/// A safetensors file of ours or of PEFT, read whole.
#[derive(Debug)]
pub struct TensorFile {
    /// By their names; those that [`TensorFile::take`] has taken are gone.
    pub tensors: BTreeMap<String, Tensor>,
    /// The text in the file's header; empty where there is none.
    pub metadata: HashMap<String, String>,
}

impl TensorFile {
    /// Reads `path`; floats of any width become f32, f64 stays.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(TrainError::io(path, "read the file"))?;
        let wrong = |problem: String| {
            TrainError::file(path, format!("not a usable safetensors file ({problem}); write it again"))
        };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| wrong(e.to_string()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            let dtype = match view.dtype() {
                Dtype::F64 => DType::F64,
                Dtype::F32 => DType::F32,
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::BF16,
                other => return Err(wrong(format!("tensor {name} holds {other:?}"))),
            };
            let shape = Shape::try_from(view.shape()).map_err(|e| wrong(format!("tensor {name} has {e}")))?;
            let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
            tensors.insert(name, View::new(shape, dtype, view.data())?.to_tensor(wide)?);
        }
        Ok(TensorFile { tensors, metadata: header.metadata().clone().unwrap_or_default() })
    }

    /// Takes out the tensor `name`, which must have shape `shape`.
    pub fn take(&mut self, path: &Path, name: &str, shape: Shape) -> Result<Tensor> {
        let tensor = self.tensors.remove(name).ok_or_else(|| {
            TrainError::file(path, format!("tensor {name} is missing; write the file again"))
        })?;
        if tensor.shape() != shape {
            let found = tensor.shape();
            return Err(TrainError::file(
                path,
                format!(
                    "tensor {name} has shape {found} where {shape} is needed; it belongs to another model or class list"
                ),
            ));
        }
        if tensor.view().first_not_finite().is_some() {
            let problem = format!("tensor {name} has values that are not finite; train it again");
            return Err(TrainError::file(path, problem));
        }
        Ok(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_lie_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let tensors = BTreeMap::from([("x".to_string(), Tensor::zeros([3], DType::F32))]);
        let metadata: HashMap<String, String> =
            (0..9).map(|i| (format!("key \"{i}\" é"), format!("{{\"n\": {i}}}\n"))).collect();
        stage_tensors(&path, &tensors, metadata.clone()).unwrap().persist().unwrap();
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        let places: Vec<_> =
            (0..9).map(|i| text.find(&format!("key \\\"{i}\\\"")).expect("every entry")).collect();
        assert!(places.is_sorted(), "{text}");
        assert_eq!(TensorFile::read(&path).unwrap().metadata, metadata);
    }
}
