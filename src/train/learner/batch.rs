//! A batch on the host, and where it goes on the device.

use super::LearnerSpec;
use crate::backend::{Backend, BackendError, Counting, DeviceTensor, Mix, Result};
use crate::objective::{MixDraw, MixOn, Objective};
use crate::tensor::{DType, Shape, Source, Tensor, TensorError, View};
use crate::tune::{DropoutSpec, Place, TowerDropout};
use std::ops::{Deref, DerefMut};

/// Input of a batch: images, or features in their place.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// \[n, …\]: images as [`LearnerSpec::image`] says, or those that crops are taken of.
    Images(Source<'a>),
    /// \[n, E\]: normalised features of the frozen vision tower in the place of images.
    Features(Source<'a>),
}

impl<'a> Input<'a> {
    pub(super) fn source(self) -> Source<'a> {
        match self {
            Input::Images(source) | Input::Features(source) => source,
        }
    }

    pub(super) fn is_features(self) -> bool {
        matches!(self, Input::Features(_))
    }
}

/// A batch on the host.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// n images, or their features.
    pub input: Input<'a>,
    /// \[n\]
    pub labels: &'a [u32],
    /// How it is mixed, as [`LearnerSpec::mix`] says.
    pub mix: Option<&'a MixDraw>,
    /// u32 \[n, 5\], for [`CropResizeOp::crop_resize`](crate::backend::CropResizeOp::crop_resize).
    pub crops: Option<View<'a>>,
    /// Which batch of the run it is, for dropout to draw by.
    pub number: u32,
    /// Weight of each class in the cross entropy \[C\], where the objective's
    /// [`ClassCounts`](crate::objective::ClassCounts) ask for weights.
    pub class_weights: Option<&'a [f32]>,
}

impl<'a> Batch<'a> {
    /// Images as they are.
    pub fn new(images: View<'a>, labels: &'a [u32]) -> Self {
        Batch {
            input: Input::Images(images.into()),
            labels,
            mix: None,
            crops: None,
            number: 0,
            class_weights: None,
        }
    }

    /// Features in the place of images.
    pub fn of_features(features: View<'a>, labels: &'a [u32]) -> Self {
        Batch { input: Input::Features(features.into()), ..Batch::new(features, labels) }
    }
}

/// A batch as one of those whose gradients make up a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MicroBatch {
    /// Where it stands among them.
    pub place: Place,
    /// Its share of the step's images.
    pub share: f64,
}

impl MicroBatch {
    /// A step of one batch.
    pub(crate) const ALONE: MicroBatch = MicroBatch { place: Place::Alone, share: 1.0 };
}

/// Memory for the batches of a learner on the device: that of the current one, which [`Batches::next`] changes.
pub(super) struct Batches<B: Backend> {
    sets: Vec<BatchBuffers<B>>,
    current: usize,
}

impl<B: Backend> Batches<B> {
    /// For `classes` classes and features of width `width`.
    pub fn new(backend: &B, spec: &LearnerSpec, classes: usize, width: usize) -> Result<Self> {
        let sets = (0..backend.feed_sets()).map(|_| BatchBuffers::new(backend, spec, classes, width));
        Ok(Batches { sets: sets.collect::<Result<_>>()?, current: 0 })
    }

    /// Takes the memory that was current the longest ago: the device may work on the others. `of_features` says whether
    /// the batch is one of features.
    pub fn next(&mut self, of_features: bool) {
        self.current = self.current() + 1;
        self.features.used = of_features;
    }

    /// Which memory is current, from 0 on.
    pub fn current(&self) -> usize {
        self.current % self.sets.len()
    }
}

impl<B: Backend> Deref for Batches<B> {
    type Target = BatchBuffers<B>;

    fn deref(&self) -> &BatchBuffers<B> {
        &self.sets[self.current()]
    }
}

impl<B: Backend> DerefMut for Batches<B> {
    fn deref_mut(&mut self) -> &mut BatchBuffers<B> {
        let current = self.current();
        &mut self.sets[current]
    }
}

/// Memory for a batch on the device.
pub(super) struct BatchBuffers<B: Backend> {
    /// \[n, …\]: what the tower sees.
    pub pixels: B::Tensor,
    pub crops: Option<Crops<B>>,
    pub mixing: Option<Mixing<B>>,
    /// \[C\]
    pub class_weights: Option<B::Tensor>,
    pub features: Loaded<B>,
    /// \[n\]
    pub labels: B::Tensor,
    /// \[1\]: the schedule's.
    pub factor: B::Tensor,
    /// See [`Dropout::draw`](crate::backend::Dropout::draw).
    draw: Option<(B::Tensor, DropoutSpec)>,
    classes: usize,
}

/// Features that are loaded in the place of images.
pub(super) struct Loaded<B: Backend> {
    /// \[n, E\]
    values: B::Tensor,
    /// Whether the last batch was of features.
    used: bool,
}

impl<B: Backend> Loaded<B> {
    /// The batch's features: `computed` are those of its images.
    pub fn or<'a>(&'a self, computed: &'a B::Tensor) -> &'a B::Tensor {
        if self.used { &self.values } else { computed }
    }
}

/// Larger images of a batch, and the rectangles of them that it is trained on.
pub(super) struct Crops<B: Backend> {
    /// u8 \[n, H, H, 3\]
    pub images: B::Tensor,
    /// u32 \[n, 5\]
    pub rectangles: B::Tensor,
}

/// How training batches are mixed.
pub(super) struct Mixing<B: Backend> {
    pub on: MixOn,
    pub mix: Mix<B>,
    /// Features after mixing, and their gradient \[n, E\]; unused where pixels are mixed.
    pub features: B::Tensor,
    pub d_features: B::Tensor,
}

impl<B: Backend> Mixing<B> {
    fn new(backend: &B, on: MixOn, batch: usize, width: usize) -> Result<Self> {
        let parameter = backend.parameter_dtype();
        let rows = if on == MixOn::Features { batch } else { 0 };
        let mix = Mix {
            partner: backend.zeros([batch], DType::U32)?,
            inverse: backend.zeros([batch], DType::U32)?,
            lambda: backend.zeros([batch], parameter)?,
        };
        let (features, d_features) =
            (backend.empty([rows, width], parameter)?, backend.empty([rows, width], parameter)?);
        Ok(Mixing { on, mix, features, d_features })
    }

    fn tensors(&mut self) -> impl Iterator<Item = &mut B::Tensor> {
        let mix = [&mut self.mix.partner, &mut self.mix.inverse, &mut self.mix.lambda];
        let features = [&mut self.features, &mut self.d_features];
        mix.into_iter().chain(features.into_iter().filter(|_| self.on == MixOn::Features))
    }
}

/// Values of the type `dtype`, one after another.
fn row_of<T: bytemuck::NoUninit>(values: &[T], dtype: DType) -> Result<Source<'_>> {
    Ok(View::new(Shape::from([values.len()]), dtype, bytemuck::cast_slice(values))?.into())
}

fn invalid<T>(problem: impl Into<String>) -> Result<T> {
    Err(BackendError::Invalid { op: "batch", problem: problem.into() })
}

impl<B: Backend> BatchBuffers<B> {
    fn new(backend: &B, spec: &LearnerSpec, classes: usize, width: usize) -> Result<Self> {
        let batch = spec.batch;
        let draw =
            spec.dropout.map(|dropout| Ok::<_, BackendError>((backend.zeros([4], DType::U32)?, dropout)));
        let image = spec.image.dims();
        let [a, b, c] = [0, 1, 2].map(|i| image.get(i).copied().unwrap_or(1));
        let crops = spec.crops_of.map(|side| {
            Ok::<_, BackendError>(Crops {
                images: backend.zeros([batch, side, side, 3], DType::U8)?,
                rectangles: backend.zeros([batch, 5], DType::U32)?,
            })
        });
        let weighted = spec.objective.counts.weighted;
        Ok(BatchBuffers {
            draw: draw.transpose()?,
            pixels: backend.zeros([batch, a, b, c], spec.pixel_dtype(backend))?,
            crops: crops.transpose()?,
            mixing: spec.mix.map(|on| Mixing::new(backend, on, batch, width)).transpose()?,
            class_weights: weighted
                .then(|| backend.zeros([classes], backend.parameter_dtype()))
                .transpose()?,
            features: Loaded {
                values: backend.zeros([batch, width], backend.parameter_dtype())?,
                used: false,
            },
            labels: backend.zeros([batch], DType::U32)?,
            factor: backend.zeros([1], backend.parameter_dtype())?,
            classes,
        })
    }

    /// Images of the batch that was loaded last.
    pub fn rows(&self) -> usize {
        self.labels.shape().rows()
    }

    /// Room for `batch` images.
    pub fn set_rows(&mut self, batch: usize) -> Result<()> {
        let crops = self.crops.iter_mut().flat_map(|c| [&mut c.images, &mut c.rectangles]);
        let mixing = self.mixing.iter_mut().flat_map(Mixing::tensors);
        let mut all = [&mut self.pixels, &mut self.features.values, &mut self.labels]
            .into_iter()
            .chain(crops)
            .chain(mixing);
        all.try_for_each(|tensor| tensor.set_rows(batch))
    }

    /// Refuses a batch whose labels do not fit.
    pub fn check(&self, input: Input<'_>, labels: &[u32]) -> Result<()> {
        let inputs = input.source().shape();
        if inputs.rows() != labels.len() {
            let expected = Shape::from([labels.len()]);
            return Err(TensorError::shape("labels of a batch of images", expected, inputs).into());
        }
        match labels.iter().find(|&&label| label as usize >= self.classes) {
            Some(label) => invalid(format!("label {label} among {} classes", self.classes)),
            None => Ok(()),
        }
    }

    /// Uploads a batch as it is evaluated.
    pub(crate) fn load_plain(&mut self, backend: &B, input: Input<'_>, labels: &[u32]) -> Result<()> {
        let input = match input {
            Input::Images(images) => (images, &mut self.pixels),
            Input::Features(values) => (values, &mut self.features.values),
        };
        backend.feed(vec![(row_of(labels, DType::U32)?, &mut self.labels), input])
    }

    /// Uploads a batch to train on, at `factor` times the learning rates.
    pub fn load(&mut self, backend: &B, batch: Batch<'_>, factor: f64) -> Result<()> {
        let rows = self.rows();
        let factor = [factor];
        let mut feed = vec![
            (row_of(batch.labels, DType::U32)?, &mut self.labels),
            (row_of(&factor, DType::F64)?, &mut self.factor),
        ];
        let words;
        if let Some((values, spec)) = &mut self.draw {
            words = [spec.seed as u32, (spec.seed >> 32) as u32, batch.number, 0];
            feed.push((row_of(&words, DType::U32)?, values));
        }
        let mixed;
        match (&mut self.mixing, batch.mix) {
            (None, None) => {}
            (Some(m), Some(draw)) if draw.fits(rows) => {
                let indices = |values: &[u32]| Tensor::from_slice([rows], values);
                let lambda = Tensor::from_slice([rows], &draw.lambda)?;
                mixed = [indices(&draw.partner)?, indices(&draw.inverse())?, lambda];
                let Mix { partner, inverse, lambda } = &mut m.mix;
                feed.extend(mixed.iter().map(|m| m.view().into()).zip([partner, inverse, lambda]));
            }
            (Some(_), Some(draw)) => return invalid(format!("{draw:?} is no way of mixing {rows} images")),
            _ => return invalid("a draw goes with a learner that mixes, and with no other"),
        }
        match (&mut self.class_weights, batch.class_weights) {
            (None, None) => {}
            (Some(to), Some(weights)) => feed.push((row_of(weights, DType::F32)?, to)),
            _ => return invalid("class weights go with a learner that was made for them, and with no other"),
        }
        match (batch.input, &mut self.crops, batch.crops) {
            (Input::Features(values), _, None) => feed.push((values, &mut self.features.values)),
            (Input::Images(images), None, None) => feed.push((images, &mut self.pixels)),
            (Input::Images(images), Some(to), Some(crops)) => {
                feed.extend([(images, &mut to.images), (crops.into(), &mut to.rectangles)]);
            }
            _ => return invalid("crops go with a learner that was made for them, and with no other"),
        }
        backend.feed(feed)
    }

    /// Dropout of the batch, where there is any.
    pub fn dropout(&self) -> Option<TowerDropout<'_, B>> {
        let (draw, spec) = self.draw.as_ref()?;
        Some(TowerDropout { draw, probability: spec.probability, part: 0 })
    }

    /// How its pixels are mixed, if they are.
    pub(crate) fn pixel_mix(&self) -> Option<&Mix<B>> {
        self.mixing.as_ref().filter(|m| m.on == MixOn::Pixels).map(|m| &m.mix)
    }
}

/// How the classes count in training.
pub(super) fn counting<B: Backend>(objective: Objective, weights: Option<&B::Tensor>) -> Counting<'_, B> {
    let of_text = objective.head == 0.0;
    Counting { weights, smoothing: objective.counts.smoothing, of_text }
}
