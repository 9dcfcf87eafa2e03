//! Tables on standard output.

use super::common::say;
use anyhow::Result;
use clip_engine::train::metrics::EvalMetrics;
use comfy_table::{CellAlignment, Table, presets};

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

/// Results on some splits, one row each.
pub fn results(rows: &[(String, &EvalMetrics)]) -> Table {
    let mut table = table(&["split", "images", "loss", "top-1", "top-5", "macro F1", "ECE", "text top-1"]);
    for (name, m) in rows {
        table.add_row([
            name.clone(),
            m.images.to_string(),
            format!("{:.4}", m.loss),
            percent(m.top1),
            percent(m.top5),
            percent(m.macro_f1),
            percent(m.ece),
            percent(m.text_top1),
        ]);
    }
    table
}

/// A table that is printed line by line while it grows: numbers in columns of a fixed width, then a text.
pub struct Lines<const N: usize> {
    widths: [usize; N],
    said: Result<()>,
}

impl<const N: usize> Lines<N> {
    /// Prints the header: names and widths of the columns, and what the text is.
    pub fn begin(columns: [(&str, usize); N], text: &str) -> Self {
        let widths = columns.map(|(name, width)| width.max(name.len()));
        let mut lines = Lines { widths, said: Ok(()) };
        lines.add(columns.map(|(name, _)| name.to_owned()), text);
        lines
    }

    /// Prints a line.
    pub fn add(&mut self, numbers: [String; N], text: &str) {
        let columns = numbers.iter().zip(self.widths).map(|(number, width)| format!("{number:>width$}  "));
        self.say(columns.collect::<String>() + text);
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
