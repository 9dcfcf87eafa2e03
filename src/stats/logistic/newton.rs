//! Minimises the objective of multinomial logistic regression by a truncated Newton method.
//!
//! Over θ \[K,E+1\], the weights beside the bias, and the design X \[N,E+1\], the centred features beside ones:
//!
//! f(θ) = 1/N Σ_i NLL_i + ½λ‖W‖²,  λ = 1/(C·N),  which is scikit-learn's objective divided by C·N,
//! g = Rᵀ X + λW,  R = (P − Y)/N,
//! H·d = Qᵀ X + λd,  Q = P∘(A − rowsum(P∘A))/N,  A = X dᵀ.
//!
//! A step solves H·d = −g by conjugate gradients, preconditioned by the diagonal v_c·mean(X_j²) + λ, with v_c the
//! class's mean p(1−p). What ends them is what they still bring, not the residual, which says little where the
//! features' directions differ by orders of magnitude: the last few bring less than a part of all so far, or less than
//! counts for the objective. Beside a residual reduced to min(1/4, √|g|), that spares four of five products. The
//! eigenbasis of XᵀX would halve them for 5 classes, where there is nothing to spare, and brings nothing for 51.

use super::Photos;
use crate::backend::cpu::gemm::{Matrix, MatrixMut, Threads, Write, gemm};
use crate::stats::linear::dot;
use rayon::prelude::*;

/// Steps end where the decrease that the last one predicts is below this part of the objective.
const TOLERANCE: f64 = 1e-8;
/// [`TOLERANCE`] of a fit that begins near its minimum, which is asked for where a step takes seconds.
const NEAR_TOLERANCE: f64 = 1e-6;
/// Conjugate gradients end where the last ones bring less than this part of the decrease so far.
const FORCING: f64 = 0.03;
/// Bounds for separable images and great C; what is asked for in practice needs a tenth.
const MAX_STEPS: usize = 100;
const MAX_GRADIENTS: usize = 1000;
/// Conjugate gradients end where the squared residual is below this part of the first.
const ROUNDING: f64 = 1e-20;
/// Multiplications of a product that one thread does.
const SMALL: usize = 4_000_000;
/// Numbers of the rows that one task goes through.
const ELEMENTS: usize = 32_768;
/// Below this the curvature of a class says nothing.
const MIN_CURVATURE: f64 = 1e-6;

/// The objective at every C, from the last minimum on.
pub(super) struct Newton {
    /// X \[N,E+1\].
    design: Vec<f64>,
    /// Means of the features \[E\].
    means: Vec<f64>,
    /// Mean squares of the centred features \[E\].
    squares: Vec<f64>,
    labels: Vec<u32>,
    /// Added to the logits \[N,K\].
    offset: Option<Vec<f64>>,
    classes: usize,
    tolerance: f64,
    /// The last minimum \[K,E+1\].
    theta: Vec<f64>,
    /// The last two C and the minimum before the last.
    c: Option<f64>,
    before: Option<(f64, Vec<f64>)>,
}

/// A place on the way: parameters \[K,E+1\] with their logits, probabilities \[N,K\] and objective.
struct Place {
    theta: Vec<f64>,
    logits: Vec<f64>,
    probabilities: Vec<f64>,
    value: f64,
}

/// A direction \[K,E+1\] with what it adds to the logits \[N,K\], the decrease of the quadratic model along it and the
/// slope of the objective.
struct Direction {
    theta: Vec<f64>,
    logits: Vec<f64>,
    decrease: f64,
    slope: f64,
}

impl Newton {
    /// Sets up the fit of photos that are checked, whose labels are below `classes` and occur all.
    pub(super) fn new(photos: Photos<'_>, width: usize, classes: usize) -> Self {
        let n = photos.labels.len();
        let mut means = vec![0.0; width];
        if width > 0 {
            for row in photos.features.chunks_exact(width) {
                means.iter_mut().zip(row).for_each(|(mean, x)| *mean += x / n as f64);
            }
        }
        let mut design = Vec::with_capacity(n * (width + 1));
        let mut squares = vec![0.0; width];
        for i in 0..n {
            let row = &photos.features[i * width..(i + 1) * width];
            design.extend(row.iter().zip(&means).map(|(x, mean)| x - mean));
            design.push(1.0);
            let row = &design[i * (width + 1)..];
            squares.iter_mut().zip(row).for_each(|(square, x)| *square += x * x / n as f64);
        }
        let theta = vec![0.0; classes * (width + 1)];
        let (labels, offset) = (photos.labels.to_vec(), photos.offset.map(<[f64]>::to_vec));
        Newton {
            design,
            means,
            squares,
            labels,
            offset,
            classes,
            tolerance: TOLERANCE,
            theta,
            c: None,
            before: None,
        }
    }

    /// Moves to the minimum at `c`; the objective there as scikit-learn has it, C·Σ NLL + ½‖W‖², and whether it is
    /// the minimum as far as was asked.
    pub(super) fn minimise(&mut self, c: f64) -> (f64, bool) {
        let scale = c * self.labels.len() as f64;
        let decay = 1.0 / scale;
        let mut place = self.start(c, decay);
        let mut converged = false;
        for _ in 0..MAX_STEPS {
            let direction = self.direction(&place, decay);
            converged = direction.decrease <= self.tolerance * place.value;
            let moved = self.line_search(&mut place, &direction, decay);
            if converged || !moved {
                break;
            }
        }
        let last = std::mem::replace(&mut self.theta, place.theta);
        self.before = self.c.map(|c| (c, last));
        self.c = Some(c);
        (place.value * scale, converged)
    }

    /// Begins near the minimum, at weights and biases for features that are not centred, a pair for each class.
    pub(super) fn begin<'a>(&mut self, classes: impl Iterator<Item = (&'a [f64], f64)>) {
        self.tolerance = NEAR_TOLERANCE;
        for (row, (weight, bias)) in self.theta.chunks_exact_mut(self.means.len() + 1).zip(classes) {
            row[..weight.len()].copy_from_slice(weight);
            row[weight.len()] = bias + dot(weight, &self.means);
        }
    }

    /// Weights \[K,E\] and biases \[K\] for features that are not centred; the biases' mean, which changes no
    /// probability, is 0.
    pub(super) fn parameters(&self) -> (Vec<f64>, Vec<f64>) {
        let width = self.means.len();
        let mut weight = Vec::with_capacity(self.classes * width);
        let mut bias = Vec::with_capacity(self.classes);
        for row in self.theta.chunks_exact(width + 1) {
            weight.extend_from_slice(&row[..width]);
            bias.push(row[width] - dot(&row[..width], &self.means));
        }
        let mean = bias.iter().sum::<f64>() / bias.len() as f64;
        bias.iter_mut().for_each(|b| *b -= mean);
        (weight, bias)
    }

    /// The last minimum, or the line through the last two in ln C where that is lower.
    fn start(&self, c: f64, decay: f64) -> Place {
        let warm = self.place(self.theta.clone(), decay);
        let (Some(last), Some((first, before))) = (self.c, &self.before) else { return warm };
        let reach = (c / last).ln() / (last / first).ln();
        let line = self.theta.iter().zip(before).map(|(b, a)| b + reach * (b - a));
        let ahead = self.place(line.collect(), decay);
        if ahead.value < warm.value { ahead } else { warm }
    }

    fn place(&self, theta: Vec<f64>, decay: f64) -> Place {
        let mut logits = vec![0.0; self.labels.len() * self.classes];
        self.apply(&theta, &mut logits);
        if let Some(offset) = &self.offset {
            logits.iter_mut().zip(offset).for_each(|(z, o)| *z += o);
        }
        let mut probabilities = vec![0.0; logits.len()];
        let value = self.loss(&logits, &mut probabilities) + 0.5 * decay * self.norm(&theta);
        Place { theta, logits, probabilities, value }
    }

    /// out = X θᵀ.
    fn apply(&self, theta: &[f64], out: &mut [f64]) {
        let (n, columns) = (self.labels.len(), self.means.len() + 1);
        let theta = Matrix::new(theta, self.classes, columns).transposed();
        let design = Matrix::new(&self.design, n, columns);
        gemm(MatrixMut::new(out, n, self.classes), Write::Replace, 1.0, design, theta, self.threads());
    }

    /// out = (1/N) Rᵀ X + λθ without the biases.
    fn gather(&self, rows: &[f64], theta: &[f64], decay: f64, out: &mut [f64]) {
        let (n, columns) = (self.labels.len(), self.means.len() + 1);
        let rows = Matrix::new(rows, n, self.classes).transposed();
        let design = Matrix::new(&self.design, n, columns);
        let scale = 1.0 / n as f64;
        gemm(MatrixMut::new(out, self.classes, columns), Write::Replace, scale, rows, design, self.threads());
        for (out, theta) in out.chunks_exact_mut(columns).zip(theta.chunks_exact(columns)) {
            out.iter_mut().zip(&theta[..columns - 1]).for_each(|(out, w)| *out += decay * w);
        }
    }

    /// Waking threads takes longer than a product of a few photos.
    fn threads(&self) -> Threads {
        let is_small = self.labels.len() * self.classes * (self.means.len() + 1) < SMALL;
        if is_small { Threads::One } else { Threads::All }
    }

    /// ‖W‖².
    fn norm(&self, theta: &[f64]) -> f64 {
        let columns = self.means.len() + 1;
        theta.chunks_exact(columns).map(|row| dot(&row[..columns - 1], &row[..columns - 1])).sum()
    }

    /// Mean NLL of the logits, and their softmax.
    fn loss(&self, logits: &[f64], probabilities: &mut [f64]) -> f64 {
        let rows =
            logits.par_chunks_exact(self.classes).zip(probabilities.par_chunks_exact_mut(self.classes));
        let rows = rows.zip(&self.labels).with_min_len(self.rows_of_task());
        let losses: Vec<f64> = rows
            .map(|((z, p), &label)| {
                let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                p.iter_mut().zip(z).for_each(|(p, z)| *p = (z - max).exp());
                let sum: f64 = p.iter().sum();
                p.iter_mut().for_each(|p| *p /= sum);
                sum.ln() + (max - z[label as usize])
            })
            .collect();
        losses.iter().sum::<f64>() / self.labels.len() as f64
    }

    fn gradient(&self, place: &Place, decay: f64) -> Vec<f64> {
        let mut rest = place.probabilities.clone();
        for (rest, &label) in rest.chunks_exact_mut(self.classes).zip(&self.labels) {
            rest[label as usize] -= 1.0;
        }
        let mut gradient = vec![0.0; place.theta.len()];
        self.gather(&rest, &place.theta, decay, &mut gradient);
        gradient
    }

    /// The preconditioner's diagonal \[K,E+1\].
    fn diagonal(&self, probabilities: &[f64], decay: f64) -> Vec<f64> {
        let n = self.labels.len() as f64;
        let mut curvature = vec![0.0; self.classes];
        for row in probabilities.chunks_exact(self.classes) {
            curvature.iter_mut().zip(row).for_each(|(v, p)| *v += p * (1.0 - p) / n);
        }
        let mut diagonal = Vec::with_capacity(self.theta.len());
        for v in curvature.into_iter().map(|v| v.max(MIN_CURVATURE)) {
            diagonal.extend(self.squares.iter().map(|square| v * square + decay));
            diagonal.push(v);
        }
        diagonal
    }

    /// Conjugate gradients for the Newton step.
    fn direction(&self, place: &Place, decay: f64) -> Direction {
        let gradient = self.gradient(place, decay);
        let diagonal = self.diagonal(&place.probabilities, decay);
        let mut residual: Vec<f64> = gradient.iter().map(|g| -g).collect();
        let mut conjugate: Vec<f64> = residual.iter().zip(&diagonal).map(|(r, d)| r / d).collect();
        let mut power = dot(&residual, &conjugate);
        let solved = ROUNDING * power;
        let (mut image, mut curved) = (vec![0.0; place.logits.len()], vec![0.0; gradient.len()]);
        let mut spread = image.clone();
        let (mut theta, mut logits) = (vec![0.0; gradient.len()], image.clone());
        let mut decreases: Vec<f64> = Vec::new();
        for _ in 0..MAX_GRADIENTS {
            self.apply(&conjugate, &mut image);
            self.curve(&place.probabilities, &image, &mut spread);
            self.gather(&spread, &conjugate, decay, &mut curved);
            let bend = dot(&conjugate, &curved);
            // Solved, or no number. Further on the biases would move all together, where nothing bends.
            if !(bend > 0.0 && power > solved) {
                break;
            }
            let length = power / bend;
            add(&mut theta, length, &conjugate);
            add(&mut logits, length, &image);
            add(&mut residual, -length, &curved);
            decreases.push(0.5 * length * power);
            if enough(&decreases, 0.25 * self.tolerance * place.value) {
                break;
            }
            let scaled = residual.iter().zip(&diagonal);
            let next: f64 = scaled.clone().map(|(r, d)| r * r / d).sum();
            conjugate.iter_mut().zip(scaled).for_each(|(p, (r, d))| *p = r / d + next / power * *p);
            power = next;
        }
        let (decrease, slope) = (decreases.iter().sum(), dot(&gradient, &theta));
        Direction { theta, logits, decrease, slope }
    }

    /// Q without its 1/N, for logits that change by `image`.
    fn curve(&self, probabilities: &[f64], image: &[f64], out: &mut [f64]) {
        let rows = probabilities.par_chunks_exact(self.classes).zip(image.par_chunks_exact(self.classes));
        let rows = out.par_chunks_exact_mut(self.classes).zip(rows).with_min_len(self.rows_of_task());
        rows.for_each(|(out, (p, a))| {
            let mean = dot(p, a);
            out.iter_mut().zip(p.iter().zip(a)).for_each(|(out, (p, a))| *out = p * (a - mean));
        });
    }

    /// Rows of logits whose numbers are worth a task.
    fn rows_of_task(&self) -> usize {
        ELEMENTS.div_ceil(self.classes)
    }

    /// Halves the step until it brings a part of what its slope promises (Armijo); false where no step does.
    fn line_search(&self, place: &mut Place, direction: &Direction, decay: f64) -> bool {
        let mut trial = vec![0.0; place.logits.len()];
        let mut probabilities = trial.clone();
        let mut length = 1.0;
        for _ in 0..30 {
            let moved = place.theta.iter().zip(&direction.theta).map(|(t, d)| t + length * d);
            let theta: Vec<f64> = moved.collect();
            let moved = place.logits.iter().zip(&direction.logits).map(|(z, d)| z + length * d);
            trial.iter_mut().zip(moved).for_each(|(trial, z)| *trial = z);
            let value = self.loss(&trial, &mut probabilities) + 0.5 * decay * self.norm(&theta);
            if value < place.value && value <= place.value + 1e-4 * length * direction.slope {
                *place = Place { theta, logits: trial, probabilities, value };
                return true;
            }
            length *= 0.5;
        }
        false
    }
}

/// Whether the last conjugate gradients brought little beside all so far, or less than `counts` in all.
fn enough(decreases: &[f64], counts: f64) -> bool {
    let last = (decreases.len() / 4).max(5);
    let Some(rest) = decreases.len().checked_sub(last) else { return false };
    let recent: f64 = decreases[rest..].iter().sum();
    recent <= counts || recent <= FORCING * decreases.iter().sum::<f64>()
}

fn add(to: &mut [f64], scale: f64, what: &[f64]) {
    to.iter_mut().zip(what).for_each(|(to, what)| *to += scale * what);
}
