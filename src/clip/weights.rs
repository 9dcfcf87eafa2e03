//! The weights of a CLIP checkpoint: safetensors files, memory-mapped, whole or in shards.
//!
//! Nothing is converted or copied here. [`Weights::get`] hands out views into the files; a view may start
//! at any address, which [`View`] allows for.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::ClipError;
use super::config::{Activation, ClipConfig, TowerConfig};
use crate::hash::hex;
use crate::model_files::{INDEX, PICKLED, WEIGHTS};
use crate::tensor::{DType, Shape, View};
use crate::words::one_line;

/// The opened weight files of one checkpoint.
pub struct Weights {
    files: Vec<WeightFile>,
    /// Tensor name to the file that holds it.
    holder: BTreeMap<String, usize>,
}

impl Weights {
    /// Opens `model.safetensors` in `dir`, or the shards that `model.safetensors.index.json` lists. Every
    /// header is checked against the length of its file; the tensors are not read yet.
    pub fn open(dir: &Path) -> Result<Self, ClipError> {
        let (single, index) = (dir.join(WEIGHTS), dir.join(INDEX));
        if single.exists() {
            let file = WeightFile::open(single)?;
            let holder = file.tensors.keys().map(|name| (name.clone(), 0)).collect();
            return Ok(Weights { files: vec![file], holder });
        }
        if index.exists() {
            return Self::open_shards(dir, index);
        }
        match PICKLED.iter().map(|name| dir.join(name)).find(|file| file.exists()) {
            Some(file) => Err(ClipError::PickledWeights { dir: dir.to_path_buf(), file }),
            None => Err(ClipError::NoWeights { dir: dir.to_path_buf() }),
        }
    }

    fn open_shards(dir: &Path, index: PathBuf) -> Result<Self, ClipError> {
        let mut files: Vec<WeightFile> = Vec::new();
        let mut opened: HashMap<String, usize> = HashMap::new();
        let mut holder = BTreeMap::new();
        for (name, shard) in read_index(&index)? {
            let file = match opened.get(&shard) {
                Some(&file) => file,
                None => {
                    files.push(WeightFile::open(dir.join(&shard))?);
                    opened.insert(shard.clone(), files.len() - 1);
                    files.len() - 1
                }
            };
            if !files[file].tensors.contains_key(&name) {
                let problem = format!("says that {shard} holds {name}, which it does not");
                return Err(ClipError::Index { path: index, problem });
            }
            holder.insert(name, file);
        }
        if files.is_empty() {
            return Err(ClipError::Index { path: index, problem: "weight_map lists no tensor".into() });
        }
        Ok(Weights { files, holder })
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.holder.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.holder.contains_key(name)
    }

    /// The tensor `name`, which must have the extents `dims`, in the element type it was saved with.
    ///
    /// # Errors
    /// Numbers that are none, too: all of it is read.
    pub fn get(&self, name: &str, dims: &[usize]) -> Result<View<'_>, ClipError> {
        let view = self.view(name, dims)?;
        let Some((index, value)) = view.first_not_finite() else { return Ok(view) };
        let path = self.find(name).map_or(&self.files[0].path, |(file, _)| &file.path).clone();
        Err(ClipError::NotFinite { path, name: name.to_string(), value, index })
    }

    /// The tensor `name` as [`Weights::get`] gives it, without a look at its numbers.
    fn view(&self, name: &str, dims: &[usize]) -> Result<View<'_>, ClipError> {
        let Some((file, tensor)) = self.find(name) else {
            let (path, name, shape) = (self.files[0].path.clone(), name.to_string(), dims.to_vec());
            return Err(ClipError::Missing { path, name, shape, missing: 1, expected: 1 });
        };
        let shape = Shape::try_from(dims).ok().filter(|_| tensor.dims == dims);
        let shape = shape.ok_or_else(|| ClipError::TensorShape {
            path: file.path.clone(),
            name: name.to_string(),
            expected: dims.to_vec(),
            found: tensor.dims.clone(),
        })?;
        let dtype = float_type(tensor.dtype).ok_or_else(|| ClipError::TensorType {
            path: file.path.clone(),
            name: name.to_string(),
            dtype: tensor.dtype.to_string(),
        })?;
        Ok(View::new(shape, dtype, &file.map[tensor.bytes.clone()])?)
    }

    /// Checks that every tensor of the model that `config` describes is there, with its shape and in a
    /// float type. Surplus tensors, such as the `position_ids` of older files, are fine.
    pub fn check(&self, config: &ClipConfig) -> Result<(), ClipError> {
        let expected = expected_tensors(config);
        let mut missing = expected.iter().filter(|(name, _)| !self.contains(name));
        if let Some((name, shape)) = missing.next() {
            return Err(ClipError::Missing {
                path: self.files[0].path.clone(),
                name: name.clone(),
                shape: shape.dims().to_vec(),
                missing: 1 + missing.count(),
                expected: expected.len(),
            });
        }
        expected.iter().try_for_each(|(name, shape)| self.view(name, shape.dims()).map(drop))
    }

    /// Hash that tells these weights from others: of the sizes in `config` that no shape tells, and of every tensor
    /// of the model by name, type, shape and bytes, of a large one sixteen parts all over it. It does not depend on
    /// how tensors are spread over files; weights that differ in single numbers may have the same.
    pub fn fingerprint(&self, config: &ClipConfig) -> Result<String, ClipError> {
        let mut hash = Sha256::new();
        for tower in [&config.vision.tower, &config.text.tower] {
            hash.update((tower.heads as u64).to_le_bytes());
            hash.update(tower.norm_eps.to_le_bytes());
            hash.update([u8::from(tower.activation == Activation::Gelu)]);
        }
        hash.update((config.vision.image_size as u64).to_le_bytes());
        hash.update(config.text.eos.to_le_bytes());
        let mut tensors = expected_tensors(config);
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (name, shape) in &tensors {
            let view = self.view(name, shape.dims())?;
            hash.update(format!("{name} {} {:?}\n", view.dtype().name(), shape.dims()));
            parts(view.bytes()).for_each(|part| hash.update(part));
        }
        Ok(hex(&hash.finalize()[..16]))
    }

    fn find(&self, name: &str) -> Option<(&WeightFile, &TensorEntry)> {
        let file = &self.files[*self.holder.get(name)?];
        Some((file, file.tensors.get(name)?))
    }
}

/// Parts of a large tensor that [`Weights::fingerprint`] looks at, and their bytes.
const PARTS: usize = 16;
const PART: usize = 1024;

/// All bytes of a small tensor; of a large one parts at equal distances, the first and the last bytes among them.
fn parts(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let small = bytes.len() <= PARTS * PART;
    let (count, length) = if small { (1, bytes.len()) } else { (PARTS, PART) };
    let start = move |i: usize| if small { 0 } else { i * (bytes.len() - PART) / (PARTS - 1) };
    (0..count).map(move |i| &bytes[start(i)..start(i) + length])
}

/// One memory-mapped safetensors file.
struct WeightFile {
    path: PathBuf,
    map: Mmap,
    tensors: HashMap<String, TensorEntry>,
}

/// Entry of one tensor in a file's header.
struct TensorEntry {
    dtype: Dtype,
    dims: Vec<usize>,
    /// Position in the file.
    bytes: Range<usize>,
}

impl WeightFile {
    fn open(path: PathBuf) -> Result<Self, ClipError> {
        let map = match map_file(&path) {
            Ok(map) => map,
            Err(source) => return Err(ClipError::Read { path, source }),
        };
        // Checks that the header fits the file, that the tensors fill the rest without gap or overlap, and
        // that each takes the bytes its shape and type say.
        let (header, metadata) = match SafeTensors::read_metadata(&map) {
            Ok(found) => found,
            Err(e) => return Err(ClipError::Safetensors { path, problem: one_line(&e) }),
        };
        // Eight bytes of header length come before the header.
        let data = size_of::<u64>() + header;
        let tensors = metadata.tensors().into_iter().map(|(name, info)| {
            let bytes = data + info.data_offsets.0..data + info.data_offsets.1;
            (name, TensorEntry { dtype: info.dtype, dims: info.shape.clone(), bytes })
        });
        let tensors = tensors.collect();
        Ok(WeightFile { path, map, tensors })
    }
}

fn map_file(path: &Path) -> std::io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the map is read-only, and its bytes are only ever read as plain numbers, for which any content
    // is valid. What remains, as for any mapped file, is that another process must not shorten a weight file
    // while it is in use; checkpoints are written once and replaced by renaming.
    unsafe { Mmap::map(&file) }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Tensor names and the shard that holds each; the shards lie directly in the directory of the index.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ClipError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ClipError::Read { path: path.to_path_buf(), source })?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|e| ClipError::Json { path: path.to_path_buf(), problem: e.to_string() })?;
    match index.weight_map.values().find(|shard| !is_plain_name(shard)) {
        None => Ok(index.weight_map),
        Some(shard) => {
            let problem = format!("names the shard {shard:?}, which is not a plain file name");
            Err(ClipError::Index { path: path.to_path_buf(), problem })
        }
    }
}

/// True for a name without any directory part, so that joining it to a directory stays inside.
fn is_plain_name(name: &str) -> bool {
    !name.contains(['/', '\\', ':', '\0']) && !matches!(name, "" | "." | "..")
}

fn float_type(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F64 => Some(DType::F64),
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// The tensors of the model that `config` describes: names as `transformers.CLIPModel` saves them, and
/// shapes. Linear weights are [out, in].
pub fn expected_tensors(config: &ClipConfig) -> Vec<(String, Shape)> {
    let (vision, text) = (&config.vision, &config.text);
    let (d, t, e) = (vision.tower.width, text.tower.width, config.projection);
    let mut tensors = vec![
        ("logit_scale".into(), Shape::from([])),
        ("text_model.embeddings.token_embedding.weight".into(), [text.vocabulary, t].into()),
        ("text_model.embeddings.position_embedding.weight".into(), [text.max_tokens, t].into()),
        ("text_projection.weight".into(), [e, t].into()),
        ("vision_model.embeddings.class_embedding".into(), [d].into()),
        (
            "vision_model.embeddings.patch_embedding.weight".into(),
            [d, 3, vision.patch_size, vision.patch_size].into(),
        ),
        ("vision_model.embeddings.position_embedding.weight".into(), [vision.tokens(), d].into()),
        ("visual_projection.weight".into(), [e, d].into()),
    ];
    let norms = [("text_model.final_layer_norm", t), ("vision_model.pre_layrnorm", d)];
    for (name, width) in norms.into_iter().chain([("vision_model.post_layernorm", d)]) {
        push_pair(&mut tensors, name, [width].into(), width);
    }
    push_blocks(&mut tensors, "text_model", &text.tower);
    push_blocks(&mut tensors, "vision_model", &vision.tower);
    tensors
}

fn push_blocks(tensors: &mut Vec<(String, Shape)>, model: &str, tower: &TowerConfig) {
    let (d, m) = (tower.width, tower.mlp);
    for layer in 0..tower.layers {
        let block = format!("{model}.encoder.layers.{layer}");
        for norm in ["layer_norm1", "layer_norm2"] {
            push_pair(tensors, &format!("{block}.{norm}"), [d].into(), d);
        }
        for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            push_pair(tensors, &format!("{block}.self_attn.{projection}"), [d, d].into(), d);
        }
        push_pair(tensors, &format!("{block}.mlp.fc1"), [m, d].into(), m);
        push_pair(tensors, &format!("{block}.mlp.fc2"), [d, m].into(), d);
    }
}

/// A weight and its bias.
fn push_pair(tensors: &mut Vec<(String, Shape)>, name: &str, weight: Shape, bias: usize) {
    tensors.push((format!("{name}.weight"), weight));
    tensors.push((format!("{name}.bias"), [bias].into()));
}
