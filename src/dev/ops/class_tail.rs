//! Checks and benchmark of class_tail.

use super::bench::Sizes;
use super::*;
use crate::backend::{
    Activation, AttentionInput, AttentionShape, ClassTail, ClassTailBackward, LayerNorm, Linear, TailLayers,
};

/// The arguments of a forward pass, on one side of a pair where that is named.
macro_rules! forward {
    ($a:ident, $layers:expr $(, $side:ident)?) => {
        ClassTail {
            layers: $layers,
            input: &$a.input$(.$side)?,
            normed: &$a.normed$(.$side)?,
            rows: &$a.rows$(.$side)?,
            kv: &$a.kv$(.$side)?,
            chosen: &mut $a.chosen$(.$side)?,
            chosen_normed: &mut $a.chosen_normed$(.$side)?,
            q: &mut $a.q$(.$side)?,
            saved: &mut $a.saved$(.$side)?,
            attended: &mut $a.attended$(.$side)?,
            middle: &mut $a.middle$(.$side)?,
            middle_normed: &mut $a.middle_normed$(.$side)?,
            stats: &mut $a.stats$(.$side)?,
            hidden: &mut $a.hidden$(.$side)?,
            activated: &mut $a.activated$(.$side)?,
            last: &mut $a.last$(.$side)?,
            last_normed: &mut $a.last_normed$(.$side)?,
            last_stats: &mut $a.last_stats$(.$side)?,
            projected: &mut $a.projected$(.$side)?,
            norms: &mut $a.norms$(.$side)?,
            features: &mut $a.features$(.$side)?,
        }
    };
}

/// Those of a backward pass.
macro_rules! backward {
    ($a:ident, $d:ident, $wanted:expr, $layers:expr $(, $side:ident)?) => {
        ClassTailBackward {
            layers: $layers,
            q: &$a.q$(.$side)?,
            kv: &$a.kv$(.$side)?,
            saved: &$a.saved$(.$side)?,
            attended: &$a.attended$(.$side)?,
            middle: &$a.middle$(.$side)?,
            stats: &$a.stats$(.$side)?,
            hidden: &$a.hidden$(.$side)?,
            last: &$a.last$(.$side)?,
            last_stats: &$a.last_stats$(.$side)?,
            norms: &$a.norms$(.$side)?,
            features: &$a.features$(.$side)?,
            d_features: &$d.d_features$(.$side)?,
            d_projected: &mut $d.d_projected$(.$side)?,
            d_last_normed: &mut $d.d_last_normed$(.$side)?,
            d_middle: &mut $d.d_middle$(.$side)?,
            d_hidden: &mut $d.d_hidden$(.$side)?,
            d_chosen: &mut $d.d_chosen$(.$side)?,
            d_attended: &mut $d.d_attended$(.$side)?,
            d_scores: &mut $d.d_scores$(.$side)?,
            dq: &mut $d.dq$(.$side)?,
            dkv: &mut $d.dkv$(.$side)?,
            wanted: $wanted,
        }
    };
}

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        let mut cases = vec![
            Case::of([3, 5, 2, 32], 128, 32),
            // More than one tile of rows, and terms for all warps; widths that no wide step divides.
            Case::of([33, 7, 1, 40], 552, 24),
            Case { activation: Activation::Gelu, ..Case::of([2, 70, 3, 24], 296, 40) },
            // Of which there is no kernel.
            Case::of([2, 4, 3, 5], 20, 6),
        ];
        if c.scope == Scope::Full {
            cases.extend([
                Case::of([32, 50, 12, 64], 3072, 512),
                Case::of([70, 50, 12, 64], 3072, 512),
                Case::of([8, 257, 16, 64], 4096, 768),
                Case { activation: Activation::Gelu, ..Case::of([4, 257, 16, 80], 5120, 1024) },
            ]);
        }
        cases.into_iter().try_for_each(|case| c.case(case.at(), |c| c.class_tail_case(case)))
    }

    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
        class_tail_gradients(b, rows)
    }

    const BENCHES: &[&str] = &["class_tail"];

    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        let Sizes { batch, tokens, width: d, heads, mlp, features, .. } = *b.sizes;
        let case = Case { batch, tokens, heads, width: d, mlp, features, activation: Activation::QuickGelu };
        let layers = Layers {
            q: b.layer(d, d)?,
            out: b.layer(d, d)?,
            fc1: b.layer(d, mlp)?,
            fc2: b.layer(mlp, d)?,
            projection: Linear { weight: b.weight(d, features)?, bias: None },
            norm: b.norm(d)?,
            end_norm: b.norm(d)?,
        };
        let make = |made| match made {
            // A backward pass may be all that runs: what a forward pass leaves are numbers, too.
            Random(shape, _) | Output(shape) => b.random(shape),
            Floats(shape) | RandomFloats(shape) => b.parameter(shape, 1.0),
            Saved => b.parameter(b.backend.attention_saved(batch, heads, 1, tokens), 1.0),
            Rows => b.backend.upload(Tensor::from_slice([batch], &case.rows())?.view(), DType::U32),
        };
        let (mut a, mut d) = (Passed::new(case, make)?, Gradients::new(case, make)?);
        let run = Box::new(|| b.backend.class_tail(forward!(a, layers.of(case))));
        visit(Ready { name: "class_tail", at: case.at(), run })?;
        let run = Box::new(|| b.backend.class_tail_backward(backward!(a, d, true, layers.of(case))));
        visit(Ready { name: "class_tail_backward", at: case.at(), run })
    }
}

#[derive(Clone, Copy)]
struct Case {
    batch: usize,
    tokens: usize,
    heads: usize,
    width: usize,
    mlp: usize,
    features: usize,
    activation: Activation,
}

impl Case {
    /// Of so many images, tokens, heads and columns of a head.
    fn of([batch, tokens, heads, head]: [usize; 4], mlp: usize, features: usize) -> Self {
        let activation = Activation::QuickGelu;
        Case { batch, tokens, heads, width: heads * head, mlp, features, activation }
    }

    fn at(&self) -> String {
        let Case { batch, tokens, heads, width, mlp, features, activation } = self;
        format!("{batch}x{tokens}x{width}, {heads} heads, MLP of {mlp}, {features} features, {activation:?}")
    }

    /// A row of each sequence: not the same of all.
    fn rows(&self) -> Vec<u32> {
        (0..self.batch).map(|b| (b * 3 % self.tokens) as u32).collect()
    }
}

/// The layers of a device.
struct Layers<B: Backend> {
    q: Linear<B>,
    out: Linear<B>,
    fc1: Linear<B>,
    fc2: Linear<B>,
    projection: Linear<B>,
    norm: LayerNorm<B>,
    end_norm: LayerNorm<B>,
}

impl<B: Backend> Layers<B> {
    fn of(&self, case: Case) -> TailLayers<'_, B> {
        let Layers { q, out, fc1, fc2, projection, norm, end_norm } = self;
        let (shape, activation) = (AttentionShape { heads: case.heads, causal: false }, case.activation);
        TailLayers { q, out, norm, fc1, fc2, end_norm, projection, shape, activation }
    }
}

/// What a forward pass reads, and what it leaves, on a device.
struct Passed<T> {
    input: T,
    normed: T,
    rows: T,
    kv: T,
    chosen: T,
    chosen_normed: T,
    q: T,
    saved: T,
    attended: T,
    middle: T,
    middle_normed: T,
    stats: T,
    hidden: T,
    activated: T,
    last: T,
    last_normed: T,
    last_stats: T,
    projected: T,
    norms: T,
    features: T,
}

/// What a backward pass reads besides, and what it leaves.
struct Gradients<T> {
    d_features: T,
    d_projected: T,
    d_last_normed: T,
    d_middle: T,
    d_hidden: T,
    d_chosen: T,
    d_attended: T,
    d_scores: T,
    dq: T,
    dkv: T,
}

/// How a tensor is made.
enum Made {
    /// Activations: random numbers from a seed, or a result.
    Random([usize; 3], u64),
    Output([usize; 3]),
    /// A result in the type of parameters; random numbers in it.
    Floats(Shape),
    RandomFloats(Shape),
    /// What attention keeps.
    Saved,
    /// The rows that are computed.
    Rows,
}

use Made::{Floats, Output, Random, RandomFloats, Rows, Saved};

/// Makes each tensor of a struct.
macro_rules! tensors {
    ($make:expr, $Struct:ident { $($field:ident: $made:expr,)* }) => { Ok($Struct { $($field: $make($made)?),* }) };
}

impl<T> Passed<T> {
    fn new<E>(case: Case, make: impl Fn(Made) -> Result<T, E>) -> Result<Self, E> {
        let Case { batch: n, tokens: s, width: d, mlp, features: e, .. } = case;
        tensors!(
            make,
            Passed {
                input: Random([n, s, d], 1),
                normed: Random([n, s, d], 2),
                rows: Rows,
                kv: Random([n, s, 2 * d], 3),
                chosen: Output([n, 1, d]),
                chosen_normed: Output([n, 1, d]),
                q: Output([n, 1, d]),
                saved: Saved,
                attended: Output([n, 1, d]),
                middle: Output([n, 1, d]),
                middle_normed: Output([n, 1, d]),
                stats: Floats([n, 1, 2].into()),
                hidden: Output([n, 1, mlp]),
                activated: Output([n, 1, mlp]),
                last: Output([n, 1, d]),
                last_normed: Output([n, 1, d]),
                last_stats: Floats([n, 1, 2].into()),
                projected: Output([n, 1, e]),
                norms: Floats([n].into()),
                features: Floats([n, 1, e].into()),
            }
        )
    }
}

impl<T> Gradients<T> {
    fn new<E>(case: Case, make: impl Fn(Made) -> Result<T, E>) -> Result<Self, E> {
        let Case { batch: n, tokens: s, width: d, mlp, features: e, .. } = case;
        tensors!(
            make,
            Gradients {
                d_features: RandomFloats([n, 1, e].into()),
                d_projected: Output([n, 1, e]),
                d_last_normed: Output([n, 1, d]),
                d_middle: Output([n, 1, d]),
                d_hidden: Output([n, 1, mlp]),
                d_chosen: Output([n, 1, d]),
                d_attended: Output([n, 1, d]),
                d_scores: Saved,
                dq: Output([n, 1, d]),
                dkv: Output([n, s, 2 * d]),
            }
        )
    }
}

impl<B: Backend> Checker<'_, B> {
    /// A tensor of both sides.
    fn tail_tensor(&self, case: Case, made: Made) -> Result<Pair<B>> {
        let (real, parameter) = (self.real(), self.device.parameter_dtype());
        match made {
            Random(shape, seed) => self.random(shape, real, 1.0, seed),
            Output(shape) => self.output(shape, real),
            Floats(shape) => self.output(shape, parameter),
            RandomFloats(shape) => self.random(shape, parameter, 1.0, 4),
            Rows => self.same(Tensor::from_slice([case.batch], &case.rows())?),
            Saved => Ok(Both {
                device: self
                    .device
                    .empty(self.device.attention_saved(case.batch, case.heads, 1, case.tokens), parameter)?,
                host: zeros(self.cpu.attention_saved(case.batch, case.heads, 1, case.tokens)),
            }),
        }
    }

    fn tail_layers(&self, case: Case) -> Result<Both<Layers<B>, Layers<F64>>> {
        let Case { width: d, mlp, features, .. } = case;
        let layer =
            |inputs: usize, outputs: usize, biased: bool, seed| -> Result<Both<Linear<B>, Linear<F64>>> {
                let deviation = 1.0 / (inputs as f64).sqrt();
                let weight = self.weight(&self.random([outputs, inputs], self.real(), deviation, seed)?)?;
                let bias = biased.then(|| self.random([outputs], self.real(), 1.0, seed + 1)).transpose()?;
                let (device, host) = bias.map(|bias| (bias.device, bias.host)).unzip();
                Ok(Both {
                    device: Linear { weight: weight.device, bias: device },
                    host: Linear { weight: weight.host, bias: host },
                })
            };
        let (q, out) = (layer(d, d, true, 11)?, layer(d, d, true, 13)?);
        let (fc1, fc2) = (layer(d, mlp, true, 15)?, layer(mlp, d, true, 17)?);
        let (projection, norm, end_norm) =
            (layer(d, features, false, 19)?, self.norm(d, 21)?, self.norm(d, 23)?);
        Ok(both!(Layers {
            q: *q,
            out: *out,
            fc1: *fc1,
            fc2: *fc2,
            projection: *projection,
            norm: *norm,
            end_norm: *end_norm,
        }))
    }

    fn class_tail_case(&mut self, case: Case) -> Result<()> {
        let layers = self.tail_layers(case)?;
        let mut a = Passed::new(case, |made| self.tail_tensor(case, made))?;
        self.device.class_tail(forward!(a, layers.device.of(case), device))?;
        self.cpu.class_tail(forward!(a, layers.host.of(case), host))?;
        let at = case.at();
        self.compare_within("class_tail chosen", &at, &a.chosen, 0.0)?;
        self.compare_within("class_tail chosen, normed", &at, &a.chosen_normed, 0.0)?;
        for (name, tensor) in [
            ("q", &a.q),
            ("attended", &a.attended),
            ("middle", &a.middle),
            ("hidden", &a.hidden),
            ("activated", &a.activated),
            ("last", &a.last),
            ("projected", &a.projected),
            ("norms", &a.norms),
            ("features", &a.features),
        ] {
            self.compare(&format!("class_tail {name}"), &at, tensor)?;
        }

        // From the same numbers on both sides.
        let (real, parameter) = (self.real(), self.device.parameter_dtype());
        for tensor in [&mut a.q, &mut a.attended, &mut a.middle, &mut a.hidden, &mut a.last] {
            *tensor = self.pair(&tensor.host, real)?;
        }
        for tensor in [&mut a.stats, &mut a.last_stats, &mut a.norms, &mut a.features] {
            *tensor = self.pair(&tensor.host, parameter)?;
        }
        let shape = AttentionShape { heads: case.heads, causal: false };
        let mut attended = self.tail_tensor(case, Output([case.batch, 1, case.width]))?;
        let input = AttentionInput::Split { q: &a.q.device, kv: &a.kv.device };
        self.device.attention(input, shape, &mut a.saved.device, &mut attended.device)?;
        let input = AttentionInput::Split { q: &a.q.host, kv: &a.kv.host };
        self.cpu.attention(input, shape, &mut a.saved.host, &mut attended.host)?;
        for wanted in [true, false] {
            let mut d = Gradients::new(case, |made| self.tail_tensor(case, made))?;
            self.device.class_tail_backward(backward!(a, d, wanted, layers.device.of(case), device))?;
            self.cpu.class_tail_backward(backward!(a, d, wanted, layers.host.of(case), host))?;
            let mut rows = vec![("d_middle", &d.d_middle), ("dq", &d.dq), ("dkv", &d.dkv)];
            rows.extend(wanted.then_some(("d_chosen", &d.d_chosen)));
            for (name, tensor) in rows {
                self.compare(&format!("class_tail {name}"), &at, tensor)?;
            }
        }
        Ok(())
    }
}

/// Of the features by keys and values, and by the rows that are computed.
fn class_tail_gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
    let case = Case::of([2, 5, 2, 3], 10, 4);
    let Case { width: d, mlp, features, .. } = case;
    let layer = |inputs, outputs, seed| -> Result<Linear<F64>> {
        let weight = b.weight(random([outputs, inputs], seed)?.view())?;
        Ok(Linear { weight, bias: Some(random([outputs], seed + 1)?) })
    };
    let norm = |seed| -> Result<LayerNorm<F64>> {
        Ok(LayerNorm { weight: random([d], seed)?, bias: random([d], seed + 1)?, eps: 1e-5 })
    };
    let layers = Layers::<F64> {
        q: layer(d, d, 11)?,
        out: layer(d, d, 13)?,
        fc1: layer(d, mlp, 15)?,
        fc2: layer(mlp, d, 17)?,
        projection: layer(d, features, 19)?,
        norm: norm(21)?,
        end_norm: norm(23)?,
    };
    let make = |made| -> Result<Tensor> {
        match made {
            Random(shape, seed) => random(shape, seed),
            Output(shape) => Ok(zeros(shape)),
            Floats(shape) => Ok(zeros(shape)),
            RandomFloats(shape) => random(shape, 4),
            Rows => Ok(Tensor::from_slice([case.batch], &case.rows())?),
            Saved => Ok(zeros(b.attention_saved(case.batch, case.heads, 1, case.tokens))),
        }
    };
    let features_of =
        |kv: Option<&Tensor>, normed: Option<&Tensor>, a: &mut Passed<Tensor>| -> Result<Tensor> {
            a.kv = kv.unwrap_or(&a.kv).view().to_tensor(DType::F64)?;
            a.normed = normed.unwrap_or(&a.normed).view().to_tensor(DType::F64)?;
            b.class_tail(forward!(a, layers.of(case)))?;
            Ok(a.features.view().to_tensor(DType::F64)?)
        };
    let (mut a, mut d) = (Passed::new(case, make)?, Gradients::new(case, make)?);
    b.class_tail(forward!(a, layers.of(case)))?;
    b.class_tail_backward(backward!(a, d, true, layers.of(case)))?;
    let weights = &d.d_features;
    let kv = a.kv.view().to_tensor(DType::F64)?;
    row(rows, "class_tail dkv", case.at(), &kv, &d.dkv, |kv| {
        dot(&features_of(Some(kv), None, &mut Passed::new(case, make)?)?, weights)
    })?;
    let normed = a.normed.view().to_tensor(DType::F64)?;
    let mut d_normed = zeros(normed.shape());
    b.take_rows_backward(&d.d_chosen, &a.rows, &mut d_normed)?;
    row(rows, "class_tail d_chosen", case.at(), &normed, &d_normed, |normed| {
        dot(&features_of(None, Some(normed), &mut Passed::new(case, make)?)?, weights)
    })
}
