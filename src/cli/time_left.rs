//! How much time a run has left, by the time that its parts took so far.

use crate::progress::RunPart;

/// A run that is under way. All times are seconds since the same moment.
#[derive(Debug, Clone, Copy)]
pub struct Course {
    part: RunPart,
    /// The first part that was seen: another than 0 in a run that goes on.
    first: u32,
    started: f64,
    part_started: f64,
}

impl Course {
    /// A part begins. It is the first of another run unless it comes after what `earlier` has seen.
    pub fn begin(earlier: Option<Course>, part: RunPart, now: f64) -> Course {
        let same_run =
            earlier.filter(|earlier| earlier.part.of == part.of && earlier.part.index < part.index);
        let (first, started) = same_run.map_or((part.index, now), |earlier| (earlier.first, earlier.started));
        Course { part, first, started, part_started: now }
    }

    /// "at most 12 min left", once `done` of the part's own `total` units are done; none where nothing can be
    /// said yet.
    pub fn left(&self, done: u64, total: u64, now: f64) -> Option<String> {
        let RunPart { index, of, after, at_most } = self.part;
        let done_of_part = done as f64 / (total + after).max(1) as f64;
        let whole_part = match index - self.first {
            0 if done == 0 => return None,
            0 => (now - self.part_started) / done_of_part,
            parts => (self.part_started - self.started) / f64::from(parts),
        };
        let left = in_words(whole_part * (f64::from(of - index) - done_of_part));
        Some(if at_most { format!("at most {left} left") } else { format!("{left} left") })
    }
}

/// "45 s", "12 min", "2.1 h".
fn in_words(seconds: f64) -> String {
    match seconds {
        s if s < 99.5 => format!("{s:.0} s"),
        s if s < 99.5 * 60.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(index: u32, of: u32) -> RunPart {
        RunPart { index, of, after: 100, at_most: false }
    }

    #[test]
    fn the_whole_run_counts() {
        // The first epoch: 50 of 300 images in 10 s, so 60 s for each of 4 epochs.
        let first = Course::begin(None, part(0, 4), 5.0);
        assert_eq!(first.left(0, 200, 5.0), None);
        assert_eq!(first.left(50, 200, 15.0).unwrap(), "4 min left");
        // It took 40 s in fact; half of the second is done as far as is known.
        let second = Course::begin(Some(first), part(1, 4), 45.0);
        assert_eq!(second.left(0, 200, 45.0).unwrap(), "2 min left");
        assert_eq!(second.left(150, 200, 60.0).unwrap(), "2 min left");
        let third = Course::begin(Some(second), part(2, 4), 85.0);
        assert_eq!(third.left(150, 200, 105.0).unwrap(), "60 s left");
        let stops = Course { part: RunPart { at_most: true, ..part(2, 4) }, ..third };
        assert_eq!(stops.left(150, 200, 105.0).unwrap(), "at most 60 s left");
    }

    #[test]
    fn a_run_that_goes_on_and_the_next_run_begin_anew() {
        let resumed = Course::begin(None, part(2, 4), 100.0);
        assert_eq!(resumed.left(150, 200, 130.0).unwrap(), "90 s left");
        let next = Course::begin(Some(resumed), part(0, 4), 200.0);
        assert_eq!(next.left(0, 200, 200.0), None, "nothing is known of another run");
        assert_eq!(next.left(150, 200, 201.0).unwrap(), "7 s left");
    }

    #[test]
    fn times_are_short() {
        for (seconds, words) in
            [(0.0, "0 s"), (99.4, "99 s"), (100.0, "2 min"), (5940.0, "99 min"), (7560.0, "2.1 h")]
        {
            assert_eq!(in_words(seconds), words);
        }
    }
}
