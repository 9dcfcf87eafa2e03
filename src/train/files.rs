//! Files that are either whole or not there: written beside, synced, renamed.

use super::{Result, TrainError};
use crate::tensor::{DType, Shape, Tensor, View};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// How the names of files begin and end that have not got their own yet.
const PREFIX: &str = ".engine-";
const SUFFIX: &str = ".tmp";

/// Whether `name` is that of a file which was being written.
pub(super) fn is_unfinished(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
}

/// Removes what a killed process was writing into `folder`. No other process may be at work there.
pub(super) fn remove_unfinished(folder: &Path) -> Result<()> {
    // Without the folder, or the right to list it, there is nothing to tidy up.
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    for path in entries.flatten().filter(|entry| is_unfinished(&entry.file_name())).map(|e| e.path()) {
        std::fs::remove_file(&path).map_err(TrainError::io(&path, "remove the file"))?;
    }
    Ok(())
}

/// A file whose contents are on the disk already, under another name.
pub struct Staged {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Staged {
    /// Writes `bytes` beside `path` and syncs them.
    pub fn new(path: &Path, bytes: &[u8]) -> Result<Self> {
        let io = |e: std::io::Error| TrainError::io(path, "write the file")(e);
        let mut file = beside(path).map_err(io)?;
        file.write_all(bytes).map_err(io)?;
        file.as_file().sync_all().map_err(io)?;
        Ok(Staged { file, path: path.to_path_buf() })
    }

    /// Gives the file its name, so that a reader, or a crash at any moment, finds the old file or this one.
    pub fn persist(self) -> Result<()> {
        let Staged { file, path } = self;
        file.persist(&path).map_err(|e| TrainError::io(&path, "write the file")(e.error))?;
        // The rename itself must reach the disk too; not every file system lets a folder be synced.
        if let Ok(folder) = File::open(folder_of(&path)) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A new file in the folder of `path`, with the rights of any other: the user's umask decides.
fn beside(path: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder_of(path))
}

/// Gives a file the rights of any other new one.
fn share(path: &Path) -> std::io::Result<()> {
    let usual = beside(path)?.as_file().metadata()?.permissions();
    std::fs::set_permissions(path, usual)
}

/// Writes a whole file or none.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    Staged::new(path, bytes)?.persist()
}

/// Named tensors with text metadata as a safetensors file for `path`.
pub fn stage_tensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: HashMap<String, String>,
) -> Result<Staged> {
    let mut bytes = safetensors::serialize(views(path, tensors)?, Some(metadata))
        .map_err(|e| TrainError::file(path, format!("cannot be stored ({e})")))?;
    sort_metadata(&mut bytes);
    Staged::new(path, &bytes)
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

/// The same, written to `path` as it goes: for files too large to be in memory twice, in a folder that nobody
/// reads yet.
pub fn write_tensors(
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
