//! How predictions are printed: for people, or for programs as JSON lines or CSV.

use super::bars::Level;
use super::table::percent;
use crate::progress::Monitor;
use crate::train::Photo;
use crate::train::predict::{Choice, Predicted, Tally};
use anyhow::{Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use std::io::{ErrorKind, Stdout, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use unicode_width::UnicodeWidthStr;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    Table,
    Json,
    Csv,
}

/// Name for a photo that looks like no class.
pub const UNKNOWN: &str = "unknown";

/// What is said of photos.
pub struct Lines<'a> {
    pub form: Output,
    pub names: &'a [String],
    /// The least probability of a class that is believed, where there is one.
    pub unknown_below: Option<f64>,
}

impl<'a> Lines<'a> {
    /// Names the class of a photo, or [`UNKNOWN`] below the threshold; none where no threshold was asked for.
    fn verdict(&self, choices: &[Choice]) -> Option<&'a str> {
        let (least, best) = (self.unknown_below?, choices.first()?);
        Some(if best.probability < least { UNKNOWN } else { &self.names[best.class] })
    }

    /// A batch for programs, as JSON lines or CSV; in CSV the good ones alone, with a header where it is the `first`.
    pub fn of<P: Photo>(&self, batch: &[Predicted<P>], first: bool) -> std::io::Result<Vec<u8>> {
        if self.form == Output::Json { self.json(batch) } else { self.csv(batch, first) }
    }

    fn json<P: Photo>(&self, batch: &[Predicted<P>]) -> std::io::Result<Vec<u8>> {
        let mut text = Vec::new();
        for Predicted { photo, choices } in batch {
            let path = photo.path();
            let verdict = choices.as_ref().ok().and_then(|choices| self.verdict(choices));
            let line = JsonLine {
                path: path.to_string_lossy(),
                path_base64: path
                    .to_str()
                    .is_none()
                    .then(|| STANDARD.encode(path.as_os_str().as_encoded_bytes())),
                class: verdict,
                unknown: verdict.map(|class| class == UNKNOWN),
                predictions: choices.as_ref().ok().map(|choices| {
                    let choice = |&Choice { class, probability }: &Choice| JsonChoice {
                        class: &self.names[class],
                        index: class,
                        probability,
                    };
                    choices.iter().map(choice).collect()
                }),
                error: choices.as_ref().err().map(ToString::to_string),
            };
            serde_json::to_writer(&mut text, &line)?;
            text.push(b'\n');
        }
        Ok(text)
    }

    fn csv<P: Photo>(&self, batch: &[Predicted<P>], first: bool) -> std::io::Result<Vec<u8>> {
        let mut csv = csv::Writer::from_writer(Vec::new());
        if first {
            csv.write_record(["path", "rank", "class", "index", "probability"])?;
        }
        for Predicted { photo, choices } in batch {
            let Ok(choices) = choices else { continue };
            let verdict = self.verdict(choices);
            for (rank, choice) in (1..).zip(choices) {
                let class = verdict.filter(|_| rank == 1).unwrap_or(&self.names[choice.class]);
                let numbers = [rank, choice.class].map(|n: usize| n.to_string());
                csv.write_record([
                    photo.path().as_os_str().as_encoded_bytes(),
                    numbers[0].as_bytes(),
                    class.as_bytes(),
                    numbers[1].as_bytes(),
                    choice.probability.to_string().as_bytes(),
                ])?;
            }
        }
        csv.into_inner().map_err(|error| error.into_error())
    }
}

/// Prints predictions as they come.
pub struct Printer<'a> {
    lines: Lines<'a>,
    layout: Layout,
    monitor: &'a dyn Monitor,
    out: Stdout,
    started: bool,
    /// Error that ended the printing.
    broken: Option<std::io::Error>,
}

impl<'a> Printer<'a> {
    /// For photos, of which these are the first, and their `top_k` best classes.
    pub fn new(lines: Lines<'a>, first: &[PathBuf], top_k: usize, monitor: &'a dyn Monitor) -> Self {
        // None where standard output is no terminal.
        let columns = comfy_table::Table::new().width().map(usize::from);
        let top_k = top_k.min(lines.names.len());
        let layout = Layout::new(first, lines.names, top_k, lines.unknown_below.is_some(), columns);
        Printer { lines, layout, monitor, out: std::io::stdout(), started: false, broken: None }
    }

    /// Prints a batch, but for the reasons of the bad ones, which go to standard error unless the form has a place for
    /// them; breaks off where nobody reads any more, or cannot be written to.
    pub fn print<P: Photo>(&mut self, batch: &[Predicted<P>]) -> ControlFlow<()> {
        let first = !std::mem::replace(&mut self.started, true);
        if self.lines.form != Output::Json {
            let errors = batch.iter().filter_map(|photo| photo.choices.as_ref().err());
            errors.for_each(|error| self.monitor.warn(&visible(&error.to_string())));
        }
        let text = match self.lines.form {
            Output::Table => Ok(self.table(batch, first).into_bytes()),
            _ => self.lines.of(batch, first),
        };
        let mut out = self.out.lock();
        match text.and_then(|text| out.write_all(&text)).and_then(|()| out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.broken = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    /// Says how it ended, as an error unless every photo, of so many where that is known, was classified. A reader
    /// that has gone away had enough.
    pub fn finish(self, tally: Tally, photos: Option<usize>) -> Result<()> {
        match self.broken {
            Some(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Some(error) => bail!("standard output: {error}"),
            None => {}
        }
        let Tally { done, failed, stopped } = tally;
        if stopped {
            let of = photos.map_or(String::new(), |photos| format!(" of {photos}"));
            bail!("interrupted after {done}{of} photos; name those that are left to go on");
        }
        match (failed, self.lines.form) {
            (0, _) => Ok(()),
            (_, Output::Json) => {
                bail!("{failed} of {done} photos could not be classified; the lines with \"error\" say why")
            }
            _ if Level::chosen() >= Level::Warn => {
                bail!("{failed} of {done} photos could not be classified; the lines above say why")
            }
            _ => bail!("{failed} of {done} photos could not be classified; --log-level warn says why"),
        }
    }

    /// The good ones as text.
    fn table<P: Photo>(&self, batch: &[Predicted<P>], first: bool) -> String {
        let mut text = if first { self.layout.header() } else { String::new() };
        for Predicted { photo, choices } in batch {
            if let Ok(choices) = choices {
                let verdict = self.lines.verdict(choices);
                text += &self.layout.photo(photo.path(), verdict, choices, self.lines.names);
            }
        }
        text
    }
}

/// One line of `--json`.
#[derive(Serialize)]
struct JsonLine<'a> {
    path: std::borrow::Cow<'a, str>,
    /// The bytes of a path that is not UTF-8, which JSON cannot hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_base64: Option<String>,
    /// With `--unknown-below` only, as the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    predictions: Option<Vec<JsonChoice<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct JsonChoice<'a> {
    class: &'a str,
    index: usize,
    probability: f64,
}

/// So many photos at the most get lines of their own for each class.
const FEW: usize = 4;

/// The least room for a path in a row.
const SHORTEST_PATH: usize = 16;

/// "100.0 %".
const PERCENT: usize = 7;

/// How a photo and its classes are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// The path, and what the photo is called where that was asked for; below it a line for each class.
    Blocks,
    /// One row for each photo, in columns of these widths; `verdict` is that of what it is called. A path that is longer
    /// than `room` is shown by its end.
    Rows { path: usize, room: usize, verdict: Option<usize>, class: usize, choices: usize },
}

impl Layout {
    /// For photos of which `paths` are the first: rows for many, where they fit the terminal of `columns` columns; a file
    /// takes any width.
    fn new(
        paths: &[PathBuf],
        names: &[String],
        choices: usize,
        verdicts: bool,
        columns: Option<usize>,
    ) -> Layout {
        if paths.len() <= FEW {
            return Layout::Blocks;
        }
        let path = paths.iter().map(|path| shown(path).width()).max().unwrap_or(0).max("photo".len());
        let class = names.iter().map(|name| visible(name).width()).max().unwrap_or(0);
        let verdict = verdicts.then_some(class.max(UNKNOWN.len()));
        // "| path | verdict | class 12.3 % |"
        let others = choices * (class + 1 + PERCENT + 3) + verdict.map_or(0, |verdict| verdict + 3) + 4;
        let room = columns.map_or(usize::MAX, |columns| columns.saturating_sub(others));
        if room < path.min(SHORTEST_PATH) {
            return Layout::Blocks;
        }
        Layout::Rows { path: path.min(room), room, verdict, class, choices }
    }

    fn header(self) -> String {
        let Layout::Rows { path, verdict, class, choices, .. } = self else { return String::new() };
        let width = class + 1 + PERCENT;
        let (mut head, mut rule) =
            (format!("| {} |", padded("photo", path)), format!("|{:-<1$}|", "", path + 2));
        if let Some(verdict) = verdict {
            head += &format!(" {:<verdict$} |", "class");
            rule += &format!("{:-<1$}|", "", verdict + 2);
        }
        for choice in 1..=choices {
            head += &format!(" {choice:<width$} |");
            rule += &format!("{:-<1$}|", "", width + 2);
        }
        format!("{head}\n{rule}\n")
    }

    fn photo(self, path: &Path, verdict: Option<&str>, choices: &[Choice], names: &[String]) -> String {
        let path = shown(path);
        match self {
            Layout::Blocks => {
                let mut text = match verdict {
                    Some(class) => format!("{path}: {}\n", visible(class)),
                    None => format!("{path}\n"),
                };
                for choice in choices {
                    let (class, share) = (visible(&names[choice.class]), percent(choice.probability));
                    text += &format!("  {share:>PERCENT$}  {class}\n");
                }
                text
            }
            Layout::Rows { path: usual, room, verdict: width, class, .. } => {
                let mut text = format!("| {} |", padded(&end_of(&path, room), usual));
                if let (Some(class), Some(width)) = (verdict, width) {
                    text += &format!(" {} |", padded(&visible(class), width));
                }
                for choice in choices {
                    let name = padded(&visible(&names[choice.class]), class);
                    text += &format!(" {name} {:>PERCENT$} |", percent(choice.probability));
                }
                text + "\n"
            }
        }
    }
}

fn shown(path: &Path) -> String {
    visible(&path.to_string_lossy())
}

/// Text on one line that a terminal shows as it is: control characters become escapes.
fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// `text` and blanks up to `width` columns.
fn padded(text: &str, width: usize) -> String {
    let blanks = width.saturating_sub(text.width());
    format!("{text}{:blanks$}", "")
}

/// `text`, or as much of its end as `width` columns hold: the end of a path says most.
fn end_of(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_string();
    }
    let mut start = text.len();
    for (at, _) in text.char_indices().rev() {
        if text[at..].width() >= width {
            break;
        }
        start = at;
    }
    format!("…{}", &text[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_string()).collect()
    }

    fn paths(count: usize, path: &str) -> Vec<PathBuf> {
        vec![PathBuf::from(path); count]
    }

    #[test]
    fn rows_fit_the_terminal_or_become_blocks() {
        let (names, long) =
            (names(&["rose", "sweet pea"]), format!("photos/{}/rose.jpg", "deep/".repeat(20)));
        let photos = paths(5, &long);
        let choices = [(1, 0.987), (0, 0.013)].map(|(class, probability)| Choice { class, probability });
        for columns in [60, 71, 110, 200] {
            let layout = Layout::new(&photos, &names, 2, false, Some(columns));
            let text = layout.header() + &layout.photo(&photos[0], None, &choices, &names);
            let widths: Vec<usize> = text.lines().map(UnicodeWidthStr::width).collect();
            assert_eq!(widths.len(), 3, "{text}");
            assert!(widths.iter().all(|&w| w == widths[0] && w <= columns), "{columns}: {widths:?}\n{text}");
            assert!(text.contains("rose.jpg |") && text.contains("98.7 %"), "{text}");
            assert_eq!(text.contains('…'), columns < 200, "{text}");
        }
        assert_eq!(Layout::new(&photos, &names, 2, false, Some(59)), Layout::Blocks, "too narrow");
        assert_eq!(Layout::new(&photos[..FEW], &names, 2, false, Some(200)), Layout::Blocks, "few");
        let file = Layout::new(&photos, &names, 2, false, None);
        assert!(file.photo(&photos[0], None, &choices, &names).contains(&long), "a file gets whole paths");
    }

    #[test]
    fn columns_are_counted_as_a_terminal_does() {
        let names = names(&["钟花", "rose"]);
        let photos = paths(5, "花/玫瑰.jpg");
        let layout = Layout::new(&photos, &names, 2, false, None);
        let choices = [(0, 1.0), (1, 0.0)].map(|(class, probability)| Choice { class, probability });
        let text = layout.header() + &layout.photo(&photos[0], None, &choices, &names);
        let widths: Vec<usize> = text.lines().map(UnicodeWidthStr::width).collect();
        assert!(widths.iter().all(|&w| w == widths[0]), "{widths:?}\n{text}");
        assert_eq!(end_of("花/玫瑰.jpg", 8), "…瑰.jpg");
        assert_eq!(end_of("花/玫瑰.jpg", 11), "花/玫瑰.jpg");
    }
}
