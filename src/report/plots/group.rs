//! The runs of a comparison by technique: what one colour, one row and one name stand for.

use super::axes::percent;
use crate::report::compare::MeanRow;
use crate::report::{Comparison, RunData};
use std::collections::BTreeSet;

/// The runs that a comparison has the mean of, or one run that is in no mean.
pub struct Group<'a> {
    pub name: &'a str,
    pub mean: Option<&'a MeanRow>,
    /// The best validation accuracy first; at least one.
    pub runs: Vec<&'a RunData>,
}

impl Group<'_> {
    /// On the validation split: the mean, or what the one run reached.
    pub fn val_top1(&self) -> f64 {
        match (self.mean, &self.runs[..]) {
            (Some(row), _) => row.mean.val_top1,
            (None, [run, ..]) => run.summary.val.top1,
            (None, []) => f64::NAN,
        }
    }

    /// [`Group::val_top1`] with its deviation, in words.
    pub(crate) fn val_text(&self) -> String {
        let std = self.mean.and_then(|row| row.std.as_ref()).map(|std| std.val_top1);
        mean_and_deviation(self.val_top1(), std)
    }
}

/// The groups of `runs`, the best validation accuracy first.
pub fn groups<'a>(comparison: &'a Comparison, runs: &'a [RunData]) -> Vec<Group<'a>> {
    let mut best: Vec<&RunData> = runs.iter().collect();
    best.sort_by(|a, b| b.summary.val.top1.total_cmp(&a.summary.val.top1));
    let mut groups: Vec<Group<'a>> = Vec::new();
    for run in best {
        let mean = comparison.mean_of(&run.name);
        let name = mean.map_or(&run.name, |row| &row.name);
        match groups
            .iter_mut()
            .find(|group| mean.is_some() && group.mean.map(|row| &row.runs) == mean.map(|row| &row.runs))
        {
            Some(group) => group.runs.push(run),
            None => groups.push(Group { name, mean, runs: vec![run] }),
        }
    }
    groups.sort_by(|a, b| b.val_top1().total_cmp(&a.val_top1()));
    groups
}

/// "5 seeds", or "1 to 5 seeds" where the means are of different numbers of runs.
pub(crate) fn seeds_text(means: &[MeanRow]) -> String {
    let counts: BTreeSet<usize> = means.iter().map(|row| row.seeds.len()).collect();
    match (counts.first(), counts.last()) {
        (Some(1), Some(1)) | (None, _) | (_, None) => "1 seed".into(),
        (Some(least), Some(most)) if least == most => format!("{most} seeds"),
        (Some(least), Some(most)) => format!("{least} to {most} seeds"),
    }
}

/// A fraction and, where there is one, its deviation, in words.
pub(crate) fn mean_and_deviation(mean: f64, std: Option<f64>) -> String {
    match std {
        Some(std) => format!("{:.1} ± {}", 100.0 * mean, percent(std)),
        None => percent(mean),
    }
}
