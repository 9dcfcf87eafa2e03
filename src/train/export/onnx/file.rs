//! An ONNX file, written a tensor at a time: a large model is in memory once, mapped.
//!
//! Fields of a message may come in any order and one after the other, so the graph's tensors follow what else is in it.
//! What protobuf cannot hold, messages of 2 GiB, has its large tensors in a file beside.

use super::graph::{From, Weight, transposed};
use super::proto::{EXTERNAL, FLOAT, ModelProto, StringStringEntryProto, TensorProto};
use crate::tensor::{DType, Tensor};
use crate::train::export::merge::Merged;
use crate::train::{Result, TrainError};
use prost::Message;
use prost::{encode_length_delimiter, length_delimiter_len};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

pub(crate) const MODEL: &str = "model.onnx";
/// The large tensors of a model that is too large for one file.
pub(crate) const DATA: &str = "model.onnx.data";

/// Bytes of a file that holds all its tensors, at the most: protobuf's limit, with room for what other programs add.
pub(super) const MOST: usize = 2_000_000_000;

/// Tensors in a file beside begin at multiples of this, where every system can map them; smaller ones stay.
const ALIGNMENT: usize = 65_536;

/// The numbers of fields that are written by hand.
const GRAPH: u8 = 7;
const INITIALIZER: u8 = 5;
const RAW_DATA: u8 = 9;

/// Writes `model` with its `weights` into `folder`: into one file, or into two where it would have more than `most`
/// bytes.
pub(super) fn write(
    folder: &Path,
    mut model: ModelProto,
    weights: &[Weight],
    merged: &Merged<'_>,
    most: usize,
) -> Result<()> {
    let graph = model.graph.take().unwrap_or_default().encode_to_vec();
    let mut headers: Vec<TensorProto> = weights.iter().map(header).collect();
    let length = |headers: &[TensorProto]| {
        let tensors = headers.iter().zip(weights).map(|(header, weight)| field(length_of(header, weight)));
        graph.len() + tensors.sum::<usize>()
    };
    if model.encoded_len() + field(length(&headers)) > most {
        let mut end = 0;
        for (header, weight) in headers.iter_mut().zip(weights).filter(|(_, w)| bytes(w) >= ALIGNMENT) {
            let place = usize::next_multiple_of(end, ALIGNMENT);
            end = place + bytes(weight);
            let numbers = [("offset", place), ("length", bytes(weight))];
            let numbers = numbers.map(|(key, value)| StringStringEntryProto::new(key, value.to_string()));
            header.external_data = [StringStringEntryProto::new("location", DATA)].into();
            header.external_data.extend(numbers);
            header.data_location = EXTERNAL;
        }
    }
    let path = folder.join(MODEL);
    let mut out = Output::new(&path)?;
    let mut beside: Option<Output<'_>> = None;
    let beside_path = folder.join(DATA);
    out.write(&model.encode_to_vec())?;
    out.begin(GRAPH, length(&headers))?;
    out.write(&graph)?;
    for (header, weight) in headers.iter().zip(weights) {
        let tensor = values(weight, merged)?;
        out.begin(INITIALIZER, length_of(header, weight))?;
        out.write(&header.encode_to_vec())?;
        if header.data_location == EXTERNAL {
            let beside = match &mut beside {
                Some(beside) => beside,
                none => none.insert(Output::new(&beside_path)?),
            };
            beside.pad()?;
            beside.write(tensor.bytes())?;
        } else {
            out.begin(RAW_DATA, tensor.bytes().len())?;
            out.write(tensor.bytes())?;
        }
    }
    out.finish()?;
    beside.map_or(Ok(()), Output::finish)
}

/// All of a tensor but its numbers.
fn header(weight: &Weight) -> TensorProto {
    let dims = weight.dims.iter().map(|&extent| extent as i64).collect();
    TensorProto { dims, data_type: FLOAT, name: weight.name.clone(), ..Default::default() }
}

fn bytes(weight: &Weight) -> usize {
    weight.dims.iter().product::<usize>() * size_of::<f32>()
}

/// Bytes of a tensor's message.
fn length_of(header: &TensorProto, weight: &Weight) -> usize {
    let inside = if header.data_location == EXTERNAL { 0 } else { field(bytes(weight)) };
    header.encoded_len() + inside
}

/// Bytes of a field of so many bytes with its number, which is below 16, and its length.
fn field(length: usize) -> usize {
    1 + length_delimiter_len(length) + length
}

fn values(weight: &Weight, merged: &Merged<'_>) -> Result<Tensor> {
    let (name, dims) = (&weight.name, &weight.dims);
    match &weight.from {
        From::Checkpoint => merged.tensor(name, dims, DType::F32),
        From::Transposed => {
            let dims: Vec<usize> = dims.iter().rev().copied().collect();
            transposed(&merged.tensor(name, &dims, DType::F32)?)
        }
        From::Here(tensor) => Ok(tensor.clone()),
    }
}

/// A file that is written straight to its place, in a folder that nobody reads yet.
struct Output<'a> {
    path: &'a Path,
    file: BufWriter<File>,
    bytes: usize,
}

impl<'a> Output<'a> {
    fn new(path: &'a Path) -> Result<Self> {
        let file = File::create_new(path).map_err(TrainError::io(path, "write the file"))?;
        Ok(Output { path, file: BufWriter::new(file), bytes: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len();
        self.file.write_all(bytes).map_err(TrainError::io(self.path, "write the file"))
    }

    /// The number and the length of a field whose bytes come next.
    fn begin(&mut self, number: u8, length: usize) -> Result<()> {
        const LENGTH_DELIMITED: u8 = 2;
        let mut key = vec![number << 3 | LENGTH_DELIMITED];
        // A vector grows as it must.
        let _ = encode_length_delimiter(length, &mut key);
        self.write(&key)
    }

    fn pad(&mut self) -> Result<()> {
        let end = self.bytes.next_multiple_of(ALIGNMENT);
        self.write(&vec![0; end - self.bytes])
    }

    fn finish(self) -> Result<()> {
        let synced = self.file.into_inner().map_err(std::io::IntoInnerError::into_error);
        synced.and_then(|file| file.sync_all()).map_err(TrainError::io(self.path, "write the file"))
    }
}
