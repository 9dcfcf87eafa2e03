//! Reads TensorBoard's event files, from the description of their format alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A point of a scalar: the step and the value.
pub type Points = BTreeMap<String, Vec<(u64, f32)>>;

/// The event files of a run.
pub fn event_files(run: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(Path::new(run).join("tensorboard")) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// The scalars of the only event file of a run, checked to the last byte.
pub fn scalars(run: &str) -> Points {
    let files = event_files(run);
    assert_eq!(files.len(), 1, "{files:?}");
    let name = files[0].file_name().unwrap().to_str().unwrap();
    assert!(name.contains("tfevents"), "TensorBoard takes no other file: {name}");
    let file = std::fs::read(&files[0]).unwrap();
    let mut events = records(&file).into_iter().map(fields);
    let first = events.next().unwrap();
    assert_eq!(find(&first, 3).unwrap(), Field::Bytes(b"brain.Event:2"));
    let mut points = Points::new();
    for event in events {
        let Some(Field::Double(wall_time)) = find(&event, 1) else { panic!("no wall time in {event:?}") };
        assert!(wall_time > 1.6e9, "{wall_time} is no time of today");
        let Some(Field::Number(step)) = find(&event, 2) else { panic!("no step in {event:?}") };
        let Some(Field::Bytes(summary)) = find(&event, 5) else { panic!("no summary in {event:?}") };
        for (_, value) in fields(summary) {
            let Field::Bytes(value) = value else { panic!("{value:?} is no scalar") };
            let value = fields(value);
            let Some(Field::Bytes(tag)) = find(&value, 1) else { panic!("no tag in {value:?}") };
            let Some(Field::Float(number)) = find(&value, 2) else { panic!("no number in {value:?}") };
            points.entry(String::from_utf8(tag.to_vec()).unwrap()).or_default().push((step, number));
        }
    }
    points
}

/// The messages of a file of records: length u64, its checksum u32, message, its checksum u32.
fn records(mut file: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while !file.is_empty() {
        let (length, rest) = file.split_at(8);
        let (check, rest) = rest.split_at(4);
        assert_eq!(masked_crc(length).to_le_bytes(), check, "checksum of a length");
        let (message, rest) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
        let (check, rest) = rest.split_at(4);
        assert_eq!(masked_crc(message).to_le_bytes(), check, "checksum of a message");
        messages.push(message);
        file = rest;
    }
    messages
}

/// CRC-32C bit by bit, masked.
fn masked_crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A field of a protobuf message.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Field<'a> {
    Number(u64),
    Double(f64),
    Bytes(&'a [u8]),
    Float(f32),
}

fn find<'a>(fields: &[(u64, Field<'a>)], number: u64) -> Option<Field<'a>> {
    fields.iter().find(|(n, _)| *n == number).map(|&(_, field)| field)
}

fn fields(mut message: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let field = match key & 7 {
            0 => Field::Number(varint(&mut message)),
            1 => Field::Double(f64::from_le_bytes(take(&mut message, 8).try_into().unwrap())),
            2 => {
                let length = varint(&mut message) as usize;
                Field::Bytes(take(&mut message, length))
            }
            5 => Field::Float(f32::from_le_bytes(take(&mut message, 4).try_into().unwrap())),
            kind => panic!("wire type {kind}"),
        };
        fields.push((key >> 3, field));
    }
    fields
}

fn take<'a>(message: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = message.split_at(count);
    *message = rest;
    taken
}

fn varint(message: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = take(message, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return value;
        }
    }
}
