//! TensorBoard's event files: the numbers of metrics.jsonl as scalars.
//!
//! An event file is a row of records: the length of a message as u64, a checksum of that, the message, a
//! checksum of the message; all little-endian. The first message names the format, each of the others holds
//! the scalars of one step. Everything here follows from the lines of metrics.jsonl, so that a resumed run
//! makes its file anew from those that count instead of repairing the old one.

use super::{Result, TrainError};
use crate::files;
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How the names of event files begin, as TensorBoard wants it, and end. The time of creation is between:
/// TensorBoard goes on to the file that is named last.
const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".clip-engine";

/// The fields of `tensorflow.Event` that are used.
#[derive(Clone, PartialEq, prost::Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
}

/// The field of `tensorflow.Summary` that is used.
#[derive(Clone, PartialEq, prost::Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

/// The fields of `tensorflow.Summary.Value` that are used.
#[derive(Clone, PartialEq, prost::Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// The event file of a run, appended to as the run goes.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// The last training step; what is known of an epoch is shown there.
    step: i64,
}

impl EventFile {
    /// Writes the scalars of `metrics`, the lines of metrics.jsonl so far, into a new file in `folder`, in
    /// place of those that are there.
    pub fn create(folder: &Path, metrics: &[Value]) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(TrainError::io(folder, "create the folder"))?;
        remove(folder)?;
        let path = folder.join(format!("{PREFIX}{:010}{SUFFIX}", now().as_secs()));
        let mut step = 0;
        let version = What::FileVersion("brain.Event:2".into());
        let mut contents = record(&Event { wall_time: now().as_secs_f64(), step, what: Some(version) });
        for entry in metrics {
            contents.extend(record(&event(entry, &mut step)));
        }
        files::write_atomic(&path, &contents)?;
        let file = OpenOptions::new().append(true).open(&path);
        let file = file.map_err(TrainError::io(&path, "open the file"))?;
        Ok(EventFile { path, file, bytes: contents.len() as u64, step })
    }

    /// Appends the scalars of a line of metrics.jsonl.
    pub fn append(&mut self, entry: &Value) -> Result<()> {
        let record = record(&event(entry, &mut self.step));
        if let Err(error) = self.file.write_all(&record) {
            // Readers stop at half a record.
            let _ = self.file.set_len(self.bytes);
            return Err(TrainError::io(&self.path, "append to the file")(error));
        }
        self.bytes += record.len() as u64;
        Ok(())
    }
}

/// Removes the engine's event files from `folder`.
pub(super) fn remove(folder: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    let ours = |name: &str| name.starts_with(PREFIX) && name.ends_with(SUFFIX);
    for entry in entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(ours)) {
        files::remove(&entry.path())?;
    }
    Ok(())
}

fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The scalars of a line of metrics.jsonl; `step` is the last training step, and is that of the line after.
fn event(entry: &Value, step: &mut i64) -> Event {
    if let Some(number) = entry["step"].as_i64() {
        *step = number;
    }
    let value = scalars(entry).into_iter();
    let value = value.map(|(tag, value)| Scalar { tag, simple_value: Some(value as f32) }).collect();
    Event { wall_time: now().as_secs_f64(), step: *step, what: Some(What::Summary(Summary { value })) }
}

/// Tags and numbers; what is no number in JSON, because it was not finite, has no point.
fn scalars(entry: &Value) -> Vec<(String, f64)> {
    let mut scalars = Vec::new();
    let mut add = |tag: String, value: &Value| scalars.extend(value.as_f64().map(|value| (tag, value)));
    if entry["type"] == "step" {
        let numbers = entry.as_object().into_iter().flatten();
        let numbers = numbers.filter(|(key, _)| !["step", "epoch"].contains(&key.as_str()));
        numbers.for_each(|(key, value)| add(tag_of_step(key), value));
        return scalars;
    }
    add("epoch".to_owned(), &entry["epoch"]);
    for split in ["train", "val"] {
        let numbers = entry[split].as_object().into_iter().flatten();
        // How many images there are is no result.
        let numbers = numbers.filter(|(key, _)| *key != "images");
        numbers.for_each(|(key, value)| add(format!("{key}/{split}"), value));
    }
    scalars
}

/// The tag of a number of a step: those of a kind are drawn side by side.
fn tag_of_step(key: &str) -> String {
    match key.split_once('_') {
        _ if key == "lr" => "lr/head".into(),
        Some((kind @ ("lr" | "distance"), of)) => format!("{kind}/{of}"),
        _ if key.starts_with("loss") && key != "loss_scale" => format!("{key}/step"),
        _ => key.into(),
    }
}

fn record(event: &Event) -> Vec<u8> {
    let message = prost::Message::encode_to_vec(event);
    let length = (message.len() as u64).to_le_bytes();
    let [of_length, of_message] = [&length[..], &message].map(|bytes| checksum(bytes).to_le_bytes());
    [&length[..], &of_length, &message, &of_message].concat()
}

/// CRC-32C, rotated and moved, so that the checksum of data with checksums inside stays a good one.
fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}
