//! What a report is of: model, data, date, and the version that wrote it.

use super::RunData;
use crate::settings::Settings;
use serde::Serialize;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Model, data, date and version, as they stand under a report's title.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Origin {
    /// Name of the model's folder, or its id on the hub.
    pub model: String,
    /// Name of the data's folder.
    pub data: String,
    /// Day on which the run ended, as 2026-11-29; the last run's where there are several.
    pub date: Option<String>,
    /// Version of clip-engine.
    pub version: &'static str,
}

impl Origin {
    /// Origin of runs on the same data; it names the models of all of them.
    pub fn of(runs: &[&RunData]) -> Self {
        let mut models: Vec<String> = Vec::new();
        for run in runs {
            let model = model(&run.settings);
            if !models.contains(&model) {
                models.push(model);
            }
        }
        Origin {
            model: models.join(", "),
            data: runs.first().map(|run| data(&run.settings)).unwrap_or_default(),
            date: runs.iter().filter_map(|run| run.ended).max().map(day),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

fn model(settings: &Settings) -> String {
    match &settings.model {
        Some(model) if !settings.demo => short(model),
        _ => "demo-clip".into(),
    }
}

fn data(settings: &Settings) -> String {
    match &settings.data {
        Some(data) if !settings.demo => short(data),
        _ => "demo".into(),
    }
}

/// An id on the hub as it is; of a path its last part.
fn short(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_id = text.matches('/').count() == 1 && !text.starts_with(['.', '/', '~']) && !path.exists();
    match path.file_name() {
        Some(name) if !is_id => name.to_string_lossy().into_owned(),
        _ => text.into_owned(),
    }
}

/// The day in UTC.
fn day(time: SystemTime) -> String {
    let days = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (after.as_secs() / 86_400) as i64,
        Err(before) => -(before.duration().as_secs().div_ceil(86_400) as i64),
    };
    // Years that begin in March have their leap day at their end; 146,097 days are 400 years.
    let from_march = days + 719_468;
    let (era, of_era) = (from_march.div_euclid(146_097), from_march.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", 400 * era + year + later)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn days_are_those_of_the_calendar() {
        let at = |seconds| day(UNIX_EPOCH + Duration::from_secs(seconds));
        // As `date -u -d @SECONDS +%F` has them.
        assert_eq!(at(0), "1970-01-01");
        assert_eq!(at(951_782_399), "2000-02-28");
        assert_eq!(at(951_782_400), "2000-02-29");
        assert_eq!(at(1_772_323_199), "2026-02-28");
        assert_eq!(at(1_795_910_400), "2026-11-29");
        assert_eq!(at(4_102_444_800), "2100-01-01");
        assert_eq!(at(4_107_542_400), "2100-03-01");
        assert_eq!(day(UNIX_EPOCH - Duration::from_secs(1)), "1969-12-31");
    }

    #[test]
    fn models_and_data_are_called_briefly() {
        let path = |text: &str| short(Path::new(text));
        assert_eq!(path("openai/clip-vit-base-patch32"), "openai/clip-vit-base-patch32");
        assert_eq!(path("/data/models/clip-b32/"), "clip-b32");
        assert_eq!(path("../flowers5"), "flowers5");
        assert_eq!(path("flowers102"), "flowers102");
    }
}
