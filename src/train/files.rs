//! Files that are either whole or not there: written beside, synced, renamed.

use super::{Result, TrainError};
use crate::tensor::{DType, Shape, Tensor, View};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A file whose contents are on the disk already, under another name.
pub struct Staged {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Staged {
    /// Writes `bytes` beside `path` and syncs them.
    pub fn new(path: &Path, bytes: &[u8]) -> Result<Self> {
        let io = |e: std::io::Error| TrainError::io(path, "write the file")(e);
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        {
            // As any other new file: the user's umask decides.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let mut file = builder.tempfile_in(folder_of(path)).map_err(io)?;
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
    let mut views = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let view =
            TensorView::new(file_dtype(tensor.dtype()), tensor.shape().dims().to_vec(), tensor.bytes())
                .map_err(|e| TrainError::file(path, format!("tensor {name} cannot be stored ({e})")))?;
        views.push((name.as_str(), view));
    }
    let bytes = safetensors::serialize(views, Some(metadata))
        .map_err(|e| TrainError::file(path, format!("cannot be stored ({e})")))?;
    Staged::new(path, &bytes)
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
    pub tensors: BTreeMap<String, Tensor>,
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
        Ok(tensor)
    }
}
