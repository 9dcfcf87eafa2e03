//! Lists as people have them: tables with a header in CSV or TSV, objects in JSON lines, in any line ending, with or
//! without a byte order mark.

use super::DataError;
use crate::files;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The longest list that is read.
const MAX_BYTES: u64 = 1 << 30;

/// Names of a column of paths, in lower case without anything but letters.
pub(super) const PATH: [&str; 11] = [
    "path",
    "filename",
    "filepath",
    "file",
    "image",
    "imagepath",
    "imagename",
    "imagefile",
    "imageid",
    "id",
    "img",
];

/// Names of a column of groups, in lower case without anything but letters.
pub(super) const GROUP: [&str; 3] = ["group", "groupid", "groups"];

/// Rows of named columns, in little more memory than the list's text.
#[derive(Debug)]
pub(super) struct Table {
    file: PathBuf,
    /// Names of the columns as they are written.
    columns: Vec<String>,
    /// All cells after one another, row by row, and where each ends.
    cells: String,
    ends: Vec<usize>,
}

impl Table {
    fn new(file: &Path, columns: Vec<String>) -> Table {
        Table { file: file.to_path_buf(), columns, cells: String::new(), ends: Vec::new() }
    }

    fn push(&mut self, cell: &str) {
        self.cells.push_str(cell);
        self.ends.push(self.cells.len());
    }

    /// Every row, with as many cells as there are columns; what a row lacks is empty.
    pub fn rows(&self) -> impl Iterator<Item = Vec<&str>> {
        let mut start = 0;
        self.ends.chunks_exact(self.columns.len().max(1)).map(move |ends| {
            let cells = ends.iter().map(|&end| &self.cells[std::mem::replace(&mut start, end)..end]);
            cells.collect()
        })
    }

    /// The first column that has one of these names, in lower case without anything but letters.
    pub fn column(&self, names: &[&str]) -> Option<usize> {
        let plain: Vec<String> = self.columns.iter().map(|name| plain(name)).collect();
        names.iter().find_map(|name| plain.iter().position(|column| column == name))
    }

    /// The columns for a message.
    pub fn header(&self) -> String {
        self.columns.join(", ")
    }

    /// An error of this list; `problem` follows its name.
    pub fn wrong(&self, problem: String) -> DataError {
        DataError::file(&self.file, problem)
    }
}

fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphabetic).collect::<String>().to_ascii_lowercase()
}

/// Reads a list: JSON lines where its text begins with a brace, everything else as a table.
pub(super) fn read(file: &Path) -> Result<Table, DataError> {
    parse(file, &text_of_file(file)?)
}

/// Reads a list from its text, as [`read`] does.
pub(super) fn parse(file: &Path, text: &str) -> Result<Table, DataError> {
    let json = text.trim_start().starts_with('{');
    if json { json_lines(file, text) } else { separated(file, text) }
}

/// The content of a text file in UTF-8 or, with a byte order mark, UTF-16; without the mark.
pub(super) fn text_of_file(file: &Path) -> Result<String, DataError> {
    let bytes = files::read_up_to(file, MAX_BYTES).map_err(DataError::io(file, "read the list"))?;
    let bytes = bytes.ok_or_else(|| DataError::file(file, "is larger than 1 GiB; split it"))?;
    text(bytes).ok_or_else(|| DataError::file(file, "is no text in UTF-8; save it as UTF-8"))
}

/// Text in UTF-8 or, with a byte order mark, UTF-16; without the mark. None where it is neither.
pub fn text(bytes: Vec<u8>) -> Option<String> {
    let utf16 = |of: fn([u8; 2]) -> u16, bytes: &[u8]| {
        let units: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|pair| of(*pair)).collect();
        String::from_utf16(&units).ok()
    };
    match bytes.as_slice() {
        [0xff, 0xfe, rest @ ..] => utf16(u16::from_le_bytes, rest),
        [0xfe, 0xff, rest @ ..] => utf16(u16::from_be_bytes, rest),
        _ => {
            let mut text = String::from_utf8(bytes).ok()?;
            if text.starts_with('\u{feff}') {
                text.drain(..'\u{feff}'.len_utf8());
            }
            Some(text)
        }
    }
}

fn separated(file: &Path, text: &str) -> Result<Table, DataError> {
    let wrong = |problem: String| DataError::file(file, problem);
    // Spreadsheets of many countries write semicolons.
    let header = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let often = |separator: &u8| header.bytes().filter(|byte| byte == separator).count();
    let separator = [b',', b';', b'\t'].into_iter().rev().max_by_key(often).unwrap_or(b',');
    let mut reader =
        csv::ReaderBuilder::new().delimiter(separator).trim(csv::Trim::All).from_reader(text.as_bytes());
    let columns: Vec<String> = match reader.headers() {
        Ok(header) if !header.is_empty() => header.iter().map(String::from).collect(),
        Ok(_) => return Err(wrong("is empty".to_owned())),
        Err(error) => return Err(wrong(format!("cannot be read as a table ({error})"))),
    };
    let mut table = Table::new(file, columns);
    for record in reader.records() {
        let record = record.map_err(|error| wrong(format!("cannot be read as a table ({error})")))?;
        record.iter().for_each(|cell| table.push(cell));
    }
    Ok(table)
}

fn json_lines(file: &Path, text: &str) -> Result<Table, DataError> {
    let wrong = |line: usize, problem: &str| DataError::file(file, format!("line {line}: {problem}"));
    let objects = || {
        text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(|(number, line)| {
            match serde_json::from_str(line) {
                Ok(Value::Object(object)) => Ok(object),
                _ => Err(wrong(number + 1, "no JSON object; a list has one in each line")),
            }
        })
    };
    let mut columns: Vec<String> = Vec::new();
    for object in objects() {
        for name in object?.keys().filter(|name| !columns.contains(name)).cloned().collect::<Vec<_>>() {
            columns.push(name);
        }
    }
    let mut table = Table::new(file, columns);
    for object in objects() {
        let object = object?;
        for column in 0..table.columns.len() {
            match object.get(&table.columns[column]) {
                Some(Value::String(cell)) => table.push(cell),
                Some(Value::Null) | None => table.push(""),
                Some(other) => table.push(&other.to_string()),
            }
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(text: &str) -> (Vec<String>, Vec<Vec<String>>) {
        let table = parse(Path::new("list"), text).unwrap();
        let rows = table.rows().map(|row| row.into_iter().map(String::from).collect()).collect();
        (table.columns, rows)
    }

    #[test]
    fn tables_are_the_same_in_every_line_ending_and_separator() {
        let expected = cells("file_name,label\na.jpg,\"rose, red\"\nb.jpg,tulip\n");
        assert_eq!(expected.1, [["a.jpg", "rose, red"], ["b.jpg", "tulip"]]);
        for text in [
            "file_name,label\r\na.jpg,\"rose, red\"\r\nb.jpg,tulip",
            "file_name,label\ra.jpg,\"rose, red\"\rb.jpg,tulip\r",
            "file_name;label\n\na.jpg; rose, red\nb.jpg;tulip\n",
            "file_name\tlabel\r\na.jpg\trose, red\r\nb.jpg\ttulip\r\n",
            "{\"file_name\": \"a.jpg\", \"label\": \"rose, red\"}\r\n{\"file_name\": \"b.jpg\", \"label\": \"tulip\"}\n",
        ] {
            assert_eq!(cells(text), expected, "{text:?}");
        }
    }

    #[test]
    fn marks_of_byte_order_are_no_text() {
        let plain = "path,label\nä.jpg,x\n";
        let utf16: Vec<u16> = std::iter::once(0xfeff).chain(plain.encode_utf16()).collect();
        let bytes = |of: fn(u16) -> [u8; 2]| utf16.iter().flat_map(|&unit| of(unit)).collect();
        for bytes in [
            plain.as_bytes().to_vec(),
            format!("\u{feff}{plain}").into_bytes(),
            bytes(u16::to_le_bytes),
            bytes(u16::to_be_bytes),
        ] {
            assert_eq!(text(bytes).as_deref(), Some(plain));
        }
        assert_eq!(text(vec![b'a', 0xe4]), None);
    }

    #[test]
    fn rows_of_other_lengths_and_lines_of_no_object_are_refused() {
        for text in ["", "a,b\n1,2,3\n", "{\"a\": 1}\n[2]\n", "{\"a\": 1"] {
            assert!(parse(Path::new("list"), text).is_err(), "{text:?}");
        }
        // What only some objects have is empty in the others.
        let (columns, rows) = cells("{\"a\": 1}\n{\"b\": null, \"a\": true}\n");
        assert_eq!(
            (columns, rows),
            (
                vec!["a".into(), "b".into()],
                vec![vec!["1".into(), String::new()], vec!["true".into(), String::new()]]
            )
        );
    }
}
