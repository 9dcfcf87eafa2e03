//! Tables on standard output.

use super::common::say;
use crate::stats::interval::wilson_of;
use crate::train::metrics::EvalMetrics;
use crate::train::records::{Baseline, Ladder, Rung, RungScores};
use anyhow::Result;
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};
use unicode_width::UnicodeWidthStr;

/// A table with this header; all columns but the first are aligned to the right.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// "91.2 %".
pub fn percent(fraction: f64) -> String {
    format!("{:.1} %", 100.0 * fraction)
}

/// "1.5 MiB".
pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// "87.8 % (82.1–91.9)": an accuracy on so many images with its 95 % interval.
pub fn accuracy(fraction: f64, images: usize) -> String {
    let (low, high) = wilson_of(fraction, images);
    format!("{} ({:.1}–{:.1})", percent(fraction), 100.0 * low, 100.0 * high)
}

/// How often the class is among the first five says nothing where there are no more classes.
pub fn has_top5(classes: usize) -> bool {
    classes > 5
}

/// Results of a classifier on a split; what is not known stays empty in the table.
pub struct Results {
    title: String,
    images: usize,
    top1: f64,
    top5: Option<f64>,
    macro_f1: Option<f64>,
    nll: Option<f64>,
    ece: Option<f64>,
    text_top1: Option<f64>,
    loss: Option<f64>,
}

impl Results {
    /// Results of a run.
    pub fn fine_tuned(split: &str, m: &EvalMetrics) -> Self {
        Results {
            title: format!("fine-tuned, {split}"),
            images: m.images,
            top1: m.top1,
            top5: Some(m.top5),
            macro_f1: Some(m.macro_f1),
            nll: Some(m.nll),
            ece: Some(m.ece),
            text_top1: Some(m.text_top1),
            loss: Some(m.loss),
        }
    }

    /// Results of plain CLIP, by its text features.
    pub fn plain_clip(split: &str, images: usize, top1: f64, top5: f64, loss: Option<f64>) -> Self {
        let (title, none) = (format!("plain CLIP, {split}"), None);
        Results {
            title,
            images,
            top1,
            top5: Some(top5),
            macro_f1: none,
            nll: none,
            ece: none,
            text_top1: none,
            loss,
        }
    }

    /// Results of a logistic regression on plain CLIP's features.
    pub fn baseline(b: &Baseline) -> Self {
        Results {
            title: "logistic regression".into(),
            images: b.images,
            top1: b.top1,
            top5: None,
            macro_f1: Some(b.macro_f1),
            nll: Some(b.nll),
            ece: Some(b.ece),
            text_top1: None,
            loss: None,
        }
    }
}

/// Results beside each other: a column for each, and a row for each measure that one of them has.
pub fn results(columns: &[Results], classes: usize) -> Table {
    let titles = columns.iter().map(|results| results.title.as_str());
    let mut table = table(&std::iter::once("").chain(titles).collect::<Vec<_>>());
    let mut row = |name: &str, cell: &dyn Fn(&Results) -> Option<String>| {
        let cells: Vec<Option<String>> = columns.iter().map(cell).collect();
        if cells.iter().any(Option::is_some) {
            let cells = cells.into_iter().map(Option::unwrap_or_default);
            table.add_row(std::iter::once(name.to_owned()).chain(cells));
        }
    };
    row("images", &|r| Some(r.images.to_string()));
    row("top-1", &|r| Some(accuracy(r.top1, r.images)));
    row("top-5", &|r| r.top5.filter(|_| has_top5(classes)).map(|top5| accuracy(top5, r.images)));
    row("macro F1", &|r| r.macro_f1.map(percent));
    row("NLL", &|r| r.nll.map(|nll| format!("{nll:.3}")));
    row("ECE", &|r| r.ece.map(percent));
    row("text top-1", &|r| r.text_top1.map(|top1| accuracy(top1, r.images)));
    row("loss", &|r| r.loss.map(|loss| format!("{loss:.4}")));
    table
}

/// Table of the classifiers that were tried, the kept one with an asterisk; no wider than the terminal, or elsewhere
/// than the README.
pub fn ladder(ladder: &Ladder) -> Table {
    ladder_within(ladder, Table::new().width().unwrap_or(80))
}

/// A rung has two lines, that all its numbers have room beside each other: what was chosen is below its name, an
/// interval below its accuracy.
fn ladder_within(ladder: &Ladder, columns: u16) -> Table {
    let tested = ladder.rungs.iter().any(|rung| rung.test.is_some());
    let mut header = vec!["\nrung", "val\ntop-1", "val\nNLL"];
    header.extend(["test\ntop-1", "test\nNLL"].into_iter().filter(|_| tested));
    header.push("\nseconds");
    let mut table = table(&header);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(columns);
    // What was chosen alone is wrapped.
    for column in table.column_iter_mut().skip(1) {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
    for (place, rung) in ladder.rungs.iter().enumerate() {
        let mut row = vec![rung_cell(rung, place == ladder.kept)];
        row.extend(scores_cells(rung.val));
        if tested {
            row.extend(scores_cells(rung.test));
        }
        row.push(format!("{:.1}", rung.seconds));
        table.add_row(row);
    }
    table
}

fn rung_cell(rung: &Rung, kept: bool) -> String {
    let name = format!("{}{}", rung.kind.name(), if kept { " *" } else { "" });
    if rung.chosen.is_empty() { name } else { format!("{name}\n{}", rung.chosen) }
}

/// Accuracy and NLL; empty where they are not known.
fn scores_cells(scores: Option<RungScores>) -> [String; 2] {
    let Some(RungScores { images, top1, nll }) = scores else { return Default::default() };
    let (low, high) = wilson_of(top1, images);
    let nll = if nll.is_finite() { format!("{nll:.3}") } else { "–".into() };
    [format!("{}\n{:.1}–{:.1}", percent(top1), 100.0 * low, 100.0 * high), nll]
}

/// A table, or where it is wider than the terminal several below each other, each with the first column.
pub fn fitted(titles: &[&str], rows: &[Vec<String>]) -> String {
    // None where standard output is no terminal.
    fitted_to(titles, rows, Table::new().width().map(usize::from))
}

fn fitted_to(titles: &[&str], rows: &[Vec<String>], columns: Option<usize>) -> String {
    let cell = |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
    // With the blanks and the rule beside it.
    let width = |column: usize| {
        let cells = rows.iter().map(|row| cell(row, column).width()).max().unwrap_or(0);
        cells.max(titles[column].width()) + 3
    };
    let first = 1 + if titles.is_empty() { 0 } else { width(0) };
    let (mut tables, mut chosen, mut used) = (Vec::new(), vec![0], first);
    for column in 1..titles.len() {
        if columns.is_some_and(|columns| used + width(column) > columns) && chosen.len() > 1 {
            tables.push(std::mem::replace(&mut chosen, vec![0]));
            used = first;
        }
        chosen.push(column);
        used += width(column);
    }
    tables.push(chosen);
    let text = |chosen: &Vec<usize>| {
        let mut part = table(&chosen.iter().map(|&column| titles[column]).collect::<Vec<_>>());
        for row in rows {
            part.add_row(chosen.iter().map(|&column| cell(row, column)));
        }
        part.to_string()
    };
    tables.iter().map(text).collect::<Vec<_>>().join("\n\n")
}

/// A table that is printed line by line while it grows: numbers in columns of a fixed width, then a text.
pub struct Lines<const N: usize> {
    /// None for a column that is left out.
    widths: [Option<usize>; N],
    said: Result<()>,
}

impl<const N: usize> Lines<N> {
    /// Prints the header: names and widths of the columns, whether they are there, and what the text is.
    pub fn begin(columns: [(&str, usize, bool); N], text: &str) -> Self {
        let widths = columns.map(|(name, width, there)| there.then_some(width.max(name.len())));
        let mut lines = Lines { widths, said: Ok(()) };
        lines.add(columns.map(|(name, ..)| name.to_owned()), text);
        lines
    }

    /// Prints a line.
    pub fn add(&mut self, numbers: [String; N], text: &str) {
        let columns = numbers.iter().zip(self.widths);
        let there = columns.filter_map(|(number, width)| Some(format!("{number:>0$}  ", width?)));
        self.say(there.collect::<String>() + text);
    }

    /// Prints something about the line before.
    pub fn remark(&mut self, text: &str) {
        text.lines().for_each(|line| self.say(format!("        {line}")));
    }

    fn say(&mut self, line: String) {
        if self.said.is_ok() {
            self.said = say(line);
        }
    }

    /// Whether all of it could be printed.
    pub fn end(self) -> Result<()> {
        self.said
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::records::RungKind;

    fn metrics() -> EvalMetrics {
        EvalMetrics {
            images: 172,
            loss: 0.5,
            loss_head: 0.4,
            loss_text: 0.3,
            top1: 151.0 / 172.0,
            top5: 1.0,
            text_top1: 0.5,
            text_top5: 0.75,
            macro_f1: 0.871,
            ece: 0.0514,
            nll: 0.5,
            brier: 0.3,
        }
    }

    #[test]
    fn results_stand_beside_each_other_with_their_intervals() {
        let columns = |split: &str| {
            [Results::plain_clip(split, 172, 0.5, 0.75, None), Results::fine_tuned(split, &metrics())]
        };
        let text = results(&columns("test"), 12).to_string();
        let row = |name: &str| -> Vec<String> {
            let line = text.lines().find(|line| line.starts_with(&format!("| {name} ")));
            line.unwrap_or_else(|| panic!("{name} in\n{text}"))
                .split('|')
                .map(|cell| cell.trim().into())
                .collect()
        };
        assert_eq!(row("top-1")[2..4], ["50.0 % (42.6–57.4)", "87.8 % (82.1–91.9)"]);
        assert_eq!(row("top-5")[2..4], ["75.0 % (68.0–80.9)", "100.0 % (97.8–100.0)"]);
        assert_eq!(row("ECE")[2..4], ["", "5.1 %"]);
        assert!(text.starts_with("|            |   plain CLIP, test |"), "{text}");
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
        let five = results(&columns("test"), 5).to_string();
        assert!(!five.contains("top-5"), "no more than five classes:\n{five}");
    }

    #[test]
    fn a_ladder_fits_into_80_columns() {
        let scores = |images, top1, nll| Some(RungScores { images, top1, nll });
        let rung = |kind, chosen: &str, test| Rung {
            kind,
            chosen: chosen.into(),
            val: scores(12, 1.0, 0.1234),
            test,
            seconds: 1234.56,
        };
        let chosen = "C 31.6, text × 0.5, with crops";
        let mut climbed = Ladder {
            rungs: vec![
                rung(RungKind::PlainClip, "", scores(172, 151.0 / 172.0, 12.3456)),
                rung(RungKind::Blend, chosen, scores(172, 1.0, 0.5)),
                Rung { val: None, ..rung(RungKind::FinalFit, "", scores(172, 1.0, f64::NAN)) },
            ],
            kept: 1,
            reason: String::new(),
        };
        let text = ladder_within(&climbed, 80).to_string();
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
        assert_eq!(lines[1][1..7], ["rung", "top-1", "NLL", "top-1", "NLL", "seconds"], "{text}");
        assert_eq!(lines[3][1..7], ["plain CLIP", "100.0 %", "0.123", "87.8 %", "12.346", "1234.6"]);
        assert_eq!(lines[4][1..7], ["", "75.8–100.0", "", "82.1–91.9", "", ""]);
        assert_eq!(lines[5][1], "blend with plain CLIP *");
        let below: Vec<&str> =
            lines[6..].iter().map(|line| line[1]).take_while(|cell| *cell != "final fit").collect();
        assert_eq!(below.join(" "), chosen, "{text}");
        let last = lines.iter().find(|line| line[1] == "final fit").unwrap();
        assert_eq!(last[2..6], ["", "", "100.0 %", "–"]);
        assert_eq!(
            ladder_within(&climbed, 200).to_string().lines().count(),
            3 + 3 * 2,
            "a line more for each rung"
        );
        climbed.rungs.iter_mut().for_each(|rung| rung.test = None);
        let text = ladder_within(&climbed, 80).to_string();
        assert!(!text.contains("test") && text.contains("1234.6 |"), "{text}");
    }

    #[test]
    fn a_wide_table_becomes_several() {
        let titles = ["name", "one", "two", "three"];
        let rows = [["a", "1", "2", "3"], ["bb", "10", "20", "30"]];
        let rows = rows.map(|row| row.map(String::from).to_vec());
        let whole = fitted_to(&titles, &rows, None);
        assert_eq!(whole, fitted_to(&titles, &rows, Some(80)));
        let width = whole.lines().next().unwrap().width();
        assert_eq!(fitted_to(&titles, &rows, Some(width)), whole, "it fits exactly");
        let two = fitted_to(&titles, &rows, Some(width - 1));
        let parts: Vec<&str> = two.split("\n\n").collect();
        assert_eq!(parts.len(), 2, "{two}");
        assert!(parts.iter().all(|part| part.contains("name") && part.contains("| bb ")), "{two}");
        assert!(parts[0].contains("two") && parts[1].contains("30"), "{two}");
        assert!(two.lines().all(|line| line.width() < width), "{two}");
        // However narrow it is, every column is there.
        assert_eq!(fitted_to(&titles, &rows, Some(1)).split("\n\n").count(), 3);
    }
}
