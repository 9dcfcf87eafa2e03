//! A comparison as comma-separated values, for other programs.

use super::compare::{Comparison, ComparisonRow, MeanRow, finite};
use serde::Serialize;

impl Comparison {
    /// A table for other programs, as RFC 4180 has it: a line of `kind` "run" for each row, then one of kind
    /// "mean" for each of the means, whose columns `…_std` hold the deviations. Fractions; empty where
    /// something is not known.
    pub(crate) fn to_csv(&self) -> Result<String, csv::Error> {
        let mut table = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
        for row in &self.rows {
            table.serialize(Line::run(row, &self.split))?;
        }
        for row in &self.means {
            table.serialize(Line::mean(row, &self.split))?;
        }
        let bytes = table.into_inner().map_err(|e| csv::Error::from(e.into_error()))?;
        String::from_utf8(bytes).map_err(|e| csv::Error::from(std::io::Error::other(e)))
    }
}

/// A line of comparison.csv.
#[derive(Serialize)]
struct Line<'a> {
    kind: &'static str,
    name: &'a str,
    recipe: &'a str,
    /// Joined by blanks.
    seeds: String,
    split: &'a str,
    val_top1: Option<f64>,
    test_top1: f64,
    test_top5: Option<f64>,
    text_top1: Option<f64>,
    macro_f1: Option<f64>,
    ece: Option<f64>,
    val_top1_std: Option<f64>,
    test_top1_std: Option<f64>,
    test_top5_std: Option<f64>,
    text_top1_std: Option<f64>,
    macro_f1_std: Option<f64>,
    ece_std: Option<f64>,
    trained_parameters: usize,
    epochs: f64,
    best_epoch: f64,
    seconds: f64,
    images_per_s: Option<f64>,
    published_test_low: Option<f64>,
    published_test_high: Option<f64>,
    published_val: Option<f64>,
}

impl<'a> Line<'a> {
    fn run(row: &'a ComparisonRow, split: &'a str) -> Self {
        let published = row.published.as_ref();
        Line {
            kind: "run",
            name: &row.name,
            recipe: &row.recipe,
            seeds: row.seed.map(|seed| seed.to_string()).unwrap_or_default(),
            split,
            val_top1: row.val_top1,
            test_top1: row.test_top1,
            test_top5: finite(row.test_top5),
            text_top1: row.text_top1,
            macro_f1: row.macro_f1,
            ece: row.ece,
            val_top1_std: None,
            test_top1_std: None,
            test_top5_std: None,
            text_top1_std: None,
            macro_f1_std: None,
            ece_std: None,
            trained_parameters: row.trained_parameters,
            epochs: f64::from(row.epochs),
            best_epoch: f64::from(row.best_epoch),
            seconds: row.seconds,
            images_per_s: (row.epochs > 0).then_some(row.images_per_s),
            published_test_low: published.map(|p| p.test_top1[0]),
            published_test_high: published.map(|p| p.test_top1[1]),
            published_val: published.and_then(|p| p.val_top1),
        }
    }

    fn mean(row: &'a MeanRow, split: &'a str) -> Self {
        let (mean, std, published) = (&row.mean, row.std.as_ref(), row.published.as_ref());
        let seeds: Vec<String> = row.seeds.iter().map(u64::to_string).collect();
        Line {
            kind: "mean",
            name: &row.name,
            recipe: &row.recipe,
            seeds: seeds.join(" "),
            split,
            val_top1: Some(mean.val_top1),
            test_top1: mean.test_top1,
            test_top5: Some(mean.test_top5),
            text_top1: Some(mean.text_top1),
            macro_f1: Some(mean.macro_f1),
            ece: finite(mean.ece),
            val_top1_std: std.map(|s| s.val_top1),
            test_top1_std: std.map(|s| s.test_top1),
            test_top5_std: std.map(|s| s.test_top5),
            text_top1_std: std.map(|s| s.text_top1),
            macro_f1_std: std.map(|s| s.macro_f1),
            ece_std: std.and_then(|s| finite(s.ece)),
            trained_parameters: row.trained_parameters,
            epochs: row.epochs,
            best_epoch: row.best_epoch,
            seconds: row.seconds,
            images_per_s: None,
            published_test_low: published.map(|p| p.test_top1[0]),
            published_test_high: published.map(|p| p.test_top1[1]),
            published_val: published.and_then(|p| p.val_top1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::test_run::run;
    use crate::settings::Recipe;

    #[test]
    fn names_with_commas_quotes_and_lines_survive_csv() {
        let name = "r=8, \"wide\"\nsecond";
        let comparison = Comparison::of(&[run(name, Recipe::Lora, 1, 0.75)]).unwrap();
        let text = comparison.to_csv().unwrap();
        assert!(text.contains("\"r=8, \"\"wide\"\"\nsecond\"") && text.ends_with("\r\n"), "{text}");
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let column =
            |name: &str, headers: &csv::StringRecord| headers.iter().position(|h| h == name).unwrap();
        let headers = reader.headers().unwrap().clone();
        let records: Vec<csv::StringRecord> = reader.records().map(|record| record.unwrap()).collect();
        assert_eq!(&records[1][column("name", &headers)], name);
        assert_eq!(&records[1][column("test_top1", &headers)], "0.75");
        assert_eq!(&records[0][column("val_top1", &headers)], "");
    }
}
