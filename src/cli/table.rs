//! Tables on standard output.

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
