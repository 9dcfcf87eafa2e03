//! Multinomial logistic regression with an L2 penalty, scikit-learn's `LogisticRegression(C=C)`.

mod choose;
mod newton;

pub(crate) use choose::{Choice, choose, grid, grid_around};

use super::StatsError;
use super::linear::Linear;
use super::photos::Photos;
use newton::Newton;

/// A fitted classifier.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Logistic {
    /// Its biases have mean 0 over the classes that have photos, and are −1000 for the others. The part of the offset is
    /// that which it was fitted with.
    pub head: Linear,
    /// The inverse strength of the penalty.
    pub c: f64,
    /// C·Σ NLL + ½‖weight‖² over the photos it was fitted to, in nats.
    pub objective: f64,
    /// False where the steps came to their bound, or to that of rounding, before the minimum.
    pub converged: bool,
}

/// The bias of a class without photos. The others' logits have mean 0 over the classes without an offset, so one of
/// them is at least 0: such a class has no probability at any temperature in use.
const NO_PHOTOS: f64 = -1000.0;

/// The fit at one C, which is that of all views of a photo together; from `start` on, where one is given.
pub(crate) fn fit_at(
    c: f64,
    photos: Photos<'_>,
    share: f64,
    start: Option<&Linear>,
    width: usize,
    classes: usize,
) -> Result<Linear, StatsError> {
    check_path(&[c])?;
    photos.check(width, classes)?;
    let mut path = Path::new(photos, share, width, classes)?;
    if let Some(start) = start {
        path.begin(start);
    }
    Ok(path.fit(c / photos.views as f64).head)
}

/// The fits at each of the ascending `cs`.
#[cfg(test)]
fn fit_path(
    photos: Photos<'_>,
    width: usize,
    classes: usize,
    cs: &[f64],
) -> Result<Vec<Logistic>, StatsError> {
    check_path(cs)?;
    let share = if photos.offset.is_some() { 1.0 } else { 0.0 };
    let mut path = Path::new(photos, share, width, classes)?;
    Ok(cs.iter().map(|&c| path.fit(c)).collect())
}

/// Fits of the same photos at one C after another: C·Σ_i NLL_i + ½‖weight‖², in which the bias is not penalised. Each
/// fit starts from those before.
///
/// The minimum is that of `sklearn.linear_model.LogisticRegression(C=C)`, solver "lbfgs". For two classes that fits
/// the sigmoid of one weight vector w, which is half as much penalty: its w at 2C are the differences of these weights
/// at C. A class without photos has weight 0 and a bias that leaves it no probability; scikit-learn leaves it out.
struct Path {
    newton: Newton,
    /// Factor of the offset in the logits.
    share: f64,
    width: usize,
    classes: usize,
    /// The classes that have photos, ascending.
    present: Vec<usize>,
}

impl Path {
    /// With `share` times the offset added to the logits.
    fn new(photos: Photos<'_>, share: f64, width: usize, classes: usize) -> Result<Self, StatsError> {
        photos.check(width, classes)?;
        if photos.labels.is_empty() {
            return Err(StatsError::NoImages);
        }
        let present: Vec<usize> = (0..classes).filter(|&k| photos.labels.contains(&(k as u32))).collect();
        let place = |label: &u32| present.partition_point(|&k| k < *label as usize) as u32;
        let labels: Vec<u32> = photos.labels.iter().map(place).collect();
        let offset: Option<Vec<f64>> = photos.offset.filter(|_| share != 0.0).map(|offset| {
            offset.chunks_exact(classes).flat_map(|row| present.iter().map(|&k| share * row[k])).collect()
        });
        let photos = Photos { labels: &labels, offset: offset.as_deref(), ..photos };
        Ok(Path { newton: Newton::new(photos, width, present.len()), share, width, classes, present })
    }

    /// Begins at a head for the same classes.
    fn begin(&mut self, head: &Linear) {
        let rows =
            self.present.iter().map(|&k| (&head.weight[k * self.width..(k + 1) * self.width], head.bias[k]));
        self.newton.begin(rows);
    }

    fn fit(&mut self, c: f64) -> Logistic {
        let (objective, converged) = self.newton.minimise(c);
        let (some, biases) = self.newton.parameters();
        let (mut weight, mut bias) = (vec![0.0; self.classes * self.width], vec![NO_PHOTOS; self.classes]);
        for (i, &k) in self.present.iter().enumerate() {
            let (from, to) = (i * self.width, k * self.width);
            weight[to..to + self.width].copy_from_slice(&some[from..from + self.width]);
            bias[k] = biases[i];
        }
        Logistic { head: Linear { weight, bias, share: self.share }, c, objective, converged }
    }
}

fn check_path(cs: &[f64]) -> Result<(), StatsError> {
    let positive = cs.iter().all(|c| c.is_finite() && *c > 0.0);
    if positive && cs.is_sorted_by(|a, b| a < b) { Ok(()) } else { Err(StatsError::Path(cs.to_vec())) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use approx::assert_relative_eq;

    /// The case of tools/statistics_reference.py: numbers \[60,columns\] and labels \[60\] of 5 classes.
    pub(in crate::stats) fn case(columns: usize) -> (Vec<f64>, Vec<u32>) {
        let labels: Vec<u32> = (0..60).map(|i| (3 * i + i / 4) % 5).collect();
        let numbers = (0..60 * columns).map(|k| {
            let (i, j) = (k / columns, k % columns);
            let own = if labels[i] as usize == j { 2.0 } else { 0.0 };
            ((7 * i + 13 * j + 5 * i * j + i * i) % 23) as f64 / 4.0 + own
        });
        (numbers.collect(), labels)
    }

    pub(in crate::stats) fn photos<'a>(features: &'a [f64], labels: &'a [u32]) -> Photos<'a> {
        Photos::new(features, labels)
    }

    pub(in crate::stats) fn softmax(logits: &[f64]) -> Vec<f64> {
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = logits.iter().map(|z| (z - max).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.iter().map(|p| p / sum).collect()
    }

    fn assert_is(model: &Logistic, c: f64, objective: f64, first: &[f64], probabilities: &[f64]) {
        assert!(model.converged && model.c == c);
        assert_relative_eq!(model.objective, objective, max_relative = 1e-7);
        for (found, expected) in first.iter().zip(probabilities) {
            assert_relative_eq!(found, expected, epsilon = 5e-5);
        }
    }

    #[test]
    fn minima_agree_with_scikit_learn() {
        let (features, labels) = case(7);
        let expected = [
            (0.01, 0.817552412375, [0.20829653, 0.23024033, 0.10001425, 0.22800344, 0.23344545]),
            (1.0, 25.7387545483, [0.41800841, 0.32937769, 0.0002535, 0.17073833, 0.08162206]),
            (100.0, 248.792681995, [0.96350723, 0.03419826, 0.0, 0.00189839, 0.00039612]),
            (1e4, 821.842303237, [0.99925729, 0.00073942, 0.0, 3.02e-6, 2.8e-7]),
        ];
        let models = fit_path(photos(&features, &labels), 7, 5, &expected.map(|(c, ..)| c)).unwrap();
        for (model, (c, objective, probabilities)) in models.iter().zip(expected) {
            let first = softmax(&model.head.logits(&features[..7], None));
            assert_is(model, c, objective, &first, &probabilities);
            assert!(model.head.bias.iter().sum::<f64>().abs() < 1e-9);
        }
    }

    #[test]
    fn an_offset_is_added_and_not_fitted() {
        let ((features, labels), (offset, _)) = (case(7), case(5));
        let train = Photos { offset: Some(&offset), ..photos(&features, &labels) };
        let model = &fit_path(train, 7, 5, &[0.1]).unwrap()[0];
        let first = softmax(&model.head.logits(&features[..7], Some(&offset[..5])));
        let expected = [0.16134133, 0.4213569, 0.00543661, 0.29131875, 0.12054641];
        assert_is(model, 0.1, 3.8056877054, &first, &expected);
    }

    #[test]
    fn a_class_without_photos_is_left_out() {
        let ((features, labels), (offset, _)) = (case(7), case(5));
        let spread: Vec<f64> =
            offset.chunks(5).flat_map(|o| [9.0, o[0], o[1], o[2], 8.0, o[3], o[4]]).collect();
        let relabelled: Vec<u32> = labels.iter().map(|&label| [1, 2, 3, 5, 6][label as usize]).collect();
        let all = Photos { offset: Some(&offset), ..photos(&features, &labels) };
        let some = Photos { offset: Some(&spread), ..photos(&features, &relabelled) };
        let all = &fit_path(all, 7, 5, &[1.0]).unwrap()[0];
        let some = &fit_path(some, 7, 7, &[1.0]).unwrap()[0];
        assert_eq!(some.objective, all.objective);
        assert_eq!(some.head.weight[5 * 7..6 * 7], all.head.weight[3 * 7..4 * 7]);
        assert!(some.head.weight[4 * 7..5 * 7].iter().all(|w| *w == 0.0));
        let p = softmax(&some.head.logits(&features[..7], Some(&spread[..7])));
        assert_eq!((p[0], p[4]), (0.0, 0.0));
        assert_eq!(p[5], softmax(&all.head.logits(&features[..7], Some(&offset[..5])))[3]);
    }

    #[test]
    fn small_and_degenerate_cases_end() {
        let cs = [0.01, 1.0, 1e3, 1e6];
        // One class; fewer photos than classes; one photo; a constant feature; width 0.
        let cases: [(&[f64], &[u32], usize, usize); 5] = [
            (&[1.0, 2.0, 3.0], &[0, 0, 0], 1, 1),
            (&[1.0, 2.0, 3.0, 0.5], &[3, 0], 2, 9),
            (&[1.0, 2.0], &[1], 2, 3),
            (&[7.0, 7.0, 7.0, 7.0], &[0, 1, 1, 2], 1, 3),
            (&[], &[0, 1, 1, 2], 0, 3),
        ];
        for (features, labels, width, classes) in cases {
            for model in fit_path(photos(features, labels), width, classes, &cs).unwrap() {
                assert!(model.converged && model.objective.is_finite());
                assert!(model.head.weight.iter().chain(&model.head.bias).all(|w| w.is_finite()));
            }
        }
        // Without a feature that tells anything the probabilities are the frequencies.
        let model = &fit_path(photos(&[], &[0, 1, 1, 2]), 0, 3, &cs).unwrap()[0];
        assert_relative_eq!(model.objective, 0.01 * (4.0 * 4f64.ln() - 2.0 * 2f64.ln()), epsilon = 1e-9);
        assert_relative_eq!(model.head.bias[1], 2.0 / 3.0 * 2f64.ln(), max_relative = 1e-4);
    }

    #[test]
    fn the_scale_of_the_features_and_repeated_photos_change_c_alone() {
        let (features, labels) = case(7);
        let plain = &fit_path(photos(&features, &labels), 7, 5, &[1.0]).unwrap()[0];
        let scaled: Vec<f64> = features.iter().map(|x| 1e3 * x - 5e5).collect();
        let found = &fit_path(photos(&scaled, &labels), 7, 5, &[1e-6]).unwrap()[0];
        assert_relative_eq!(found.objective * 1e6, plain.objective, max_relative = 1e-7);
        let (twice, labels) = ([&features[..], &features].concat(), [&labels[..], &labels].concat());
        let found = &fit_path(photos(&twice, &labels), 7, 5, &[0.5]).unwrap()[0];
        assert_relative_eq!(found.objective, plain.objective, max_relative = 1e-7);
    }

    #[test]
    fn separable_photos_end_at_any_c() {
        let (mut features, labels) = case(7);
        for (row, &label) in features.chunks_mut(7).zip(&labels) {
            row[label as usize] += 20.0;
        }
        let models = fit_path(photos(&features, &labels), 7, 5, &[1.0, 1e6, 1e12]).unwrap();
        for model in &models {
            assert!((model.converged || model.c > 1e6) && model.head.weight.iter().all(|w| w.is_finite()));
        }
        let logits = models[2].head.logits(&features, None);
        let right = logits.chunks(5).zip(&labels).filter(|(z, y)| softmax(z)[**y as usize] > 0.999);
        assert_eq!(right.count(), 60);
    }

    #[test]
    fn what_cannot_be_fitted_is_an_error() {
        let cs = [1.0];
        let of = |features: &[f64], labels: &[u32]| fit_path(photos(features, labels), 2, 2, &cs);
        assert_eq!(of(&[], &[]), Err(StatsError::NoImages));
        let length = StatsError::Length { what: "features", found: 3, rows: 2, columns: 2 };
        assert_eq!(of(&[0.0; 3], &[0, 1]), Err(length));
        for bad in [f64::NAN, f64::INFINITY] {
            let found = of(&[0.0, 1.0, 2.0, bad], &[0, 1]);
            assert_eq!(found, Err(StatsError::NotFinite { what: "features", row: 1 }));
        }
        let label = StatsError::Label { row: 1, label: 2, classes: 2 };
        assert_eq!(of(&[0.0; 4], &[0, 2]), Err(label));
        let offset = Photos { offset: Some(&[0.0; 3]), ..photos(&[0.0; 4], &[0, 1]) };
        let length = StatsError::Length { what: "offsets", found: 3, rows: 2, columns: 2 };
        assert_eq!(fit_path(offset, 2, 2, &cs), Err(length));
        for cs in [vec![0.0], vec![1.0, 1.0], vec![2.0, 1.0], vec![f64::INFINITY]] {
            let found = fit_path(photos(&[0.0; 4], &[0, 1]), 2, 2, &cs);
            assert_eq!(found, Err(StatsError::Path(cs)));
        }
    }
}
