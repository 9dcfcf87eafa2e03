//! Models that stay open between calls.

use crate::watch::{Watch, run, setting_error};
use anyhow::{Result, anyhow};
use clip_engine::backend::cpu::Cpu;
use clip_engine::backend::cuda::Cuda;
use clip_engine::commands::device::{self, Device};
use clip_engine::commands::open::{model_of_run, open_model};
use clip_engine::commands::photos::Photos;
use clip_engine::data::resize::RgbImage;
use clip_engine::progress::Monitor;
use clip_engine::settings::{Precision, parse_word};
use clip_engine::tensor::DType;
use clip_engine::train::embed::{EmbedOptions, Row, embed};
use clip_engine::train::inference::{TunedTower, TuningFiles};
use clip_engine::train::model;
use clip_engine::train::predict::{self, PredictOptions};
use clip_engine::train::run_dir::RunDir;
use clip_engine::train::saved_run::of_one_epoch;
use clip_engine::train::{DecodedPhoto, Photo, TrainError, demo};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// The name of the bundled model.
const DEMO: &str = "demo";

/// Height, width and pixels \[height, width, 3\] of a photo that is decoded and upright.
type Decoded = (usize, usize, PyBackedBytes);

/// Path or name of a photo with its classes, the most probable first, or why it could not be read.
type Prediction = (PathBuf, Vec<(usize, f64)>, Option<String>);

/// Files as they are, and the photos of folders.
#[pyfunction]
pub fn list_photos(py: Python<'_>, paths: Vec<PathBuf>, watch: Option<Py<PyAny>>) -> PyResult<Vec<PathBuf>> {
    run(py, watch, |monitor| Ok(Photos::named(&paths, monitor)?.collect::<Result<_, _>>()?))
}

fn decoded(images: Vec<Decoded>) -> PyResult<Vec<DecodedPhoto>> {
    let photo = |(index, (height, width, pixels)): (usize, Decoded)| {
        let image = RgbImage::new(width, height, pixels.to_vec());
        let image = image.ok_or_else(|| setting_error(format!("image {index}: has no pixels")))?;
        Ok(DecodedPhoto { name: format!("image {index}").into(), image })
    };
    images.into_iter().enumerate().map(photo).collect()
}

fn open_device(name: &str, precision: Option<&str>, monitor: &dyn Monitor) -> Result<Device> {
    let precision = precision.map(parse_word::<Precision>).transpose();
    device::open(name, precision.map_err(|problem| anyhow!("precision: {problem}"))?, monitor)
}

enum OpenPredictor {
    Cpu(predict::Predictor<Cpu<f32>>),
    Cuda(predict::Predictor<Cuda>),
}

/// What a run trained, ready to classify photos.
#[pyclass(frozen)]
pub struct Predictor {
    open: OpenPredictor,
    #[pyo3(get)]
    class_names: Vec<String>,
}

#[pymethods]
impl Predictor {
    #[new]
    fn new(
        py: Python<'_>,
        directory: PathBuf,
        model: Option<PathBuf>,
        device: &str,
        precision: Option<&str>,
        watch: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        run(py, watch, |monitor| {
            let dir = RunDir::existing(&directory)?;
            let settings = dir.read_settings()?;
            let device = open_device(device, precision, monitor)?;
            let model = model_of_run(&dir, &settings, model.as_deref(), monitor)?;
            let open = match device {
                Device::Cpu(cpu) => {
                    OpenPredictor::Cpu(predict::Predictor::open(cpu, &model, &dir, &settings)?)
                }
                Device::Cuda(gpu) => {
                    OpenPredictor::Cuda(predict::Predictor::open(gpu, &model, &dir, &settings)?)
                }
            };
            let class_names = match &open {
                OpenPredictor::Cpu(open) => open.class_names().to_vec(),
                OpenPredictor::Cuda(open) => open.class_names().to_vec(),
            };
            Ok(Predictor { open, class_names })
        })
    }

    /// Classifies files.
    fn files(
        &self,
        py: Python<'_>,
        files: Vec<PathBuf>,
        top_k: usize,
        batch_size: usize,
        watch: Option<Py<PyAny>>,
    ) -> PyResult<Vec<Prediction>> {
        run(py, watch, |monitor| self.predict(files.into_iter().map(Ok), top_k, batch_size, monitor))
    }

    /// Classifies photos that are decoded.
    fn arrays(
        &self,
        py: Python<'_>,
        images: Vec<Decoded>,
        top_k: usize,
        batch_size: usize,
        watch: Option<Py<PyAny>>,
    ) -> PyResult<Vec<Prediction>> {
        let photos = decoded(images)?;
        run(py, watch, |monitor| self.predict(photos.into_iter().map(Ok), top_k, batch_size, monitor))
    }
}

impl Predictor {
    fn predict<P: Photo>(
        &self,
        photos: impl Iterator<Item = Result<P, TrainError>> + Send,
        top_k: usize,
        batch: usize,
        monitor: &Watch,
    ) -> Result<Vec<Prediction>> {
        let options = PredictOptions { batch, top_k };
        let mut predictions = Vec::with_capacity(photos.size_hint().0);
        let take = |batch: Vec<predict::Predicted<P>>| {
            predictions.extend(batch.iter().map(|predict::Predicted { photo, choices }| {
                let (classes, problem) = match choices {
                    Ok(choices) => (choices.iter().map(|c| (c.class, c.probability)).collect(), None),
                    Err(problem) => (Vec::new(), Some(problem.to_string())),
                };
                (photo.path().to_path_buf(), classes, problem)
            }));
            Ok(ControlFlow::Continue(()))
        };
        match &self.open {
            OpenPredictor::Cpu(open) => open.predict(photos, options, monitor, take)?,
            OpenPredictor::Cuda(open) => open.predict(photos, options, monitor, take)?,
        };
        Ok(predictions)
    }
}

enum OpenTower {
    Cpu(TunedTower<Cpu<f32>>),
    Cuda(TunedTower<Cuda>),
}

/// A model, plain or with what a run trained in its vision tower.
#[pyclass(frozen)]
pub struct Model {
    tower: OpenTower,
    model: model::Model,
}

#[pymethods]
impl Model {
    /// A model by its name, or that of a run, with what the run trained.
    #[new]
    fn new(
        py: Python<'_>,
        name: Option<PathBuf>,
        directory: Option<PathBuf>,
        device: &str,
        precision: Option<&str>,
        watch: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        run(py, watch, |monitor| {
            let device = open_device(device, precision, monitor)?;
            let (model, run) = match (&directory, &name) {
                (Some(directory), name) => {
                    let dir = RunDir::existing(directory)?;
                    let settings = dir.read_settings()?;
                    (model_of_run(&dir, &settings, name.as_deref(), monitor)?, Some((dir, settings)))
                }
                (None, Some(name)) if name == Path::new(DEMO) && !name.exists() => (demo::model()?, None),
                (None, Some(name)) => (open_model(name, monitor)?, None),
                (None, None) => return Err(anyhow!("there is no name of a model")),
            };
            let files = run.as_ref().map(|(dir, settings)| TuningFiles::of_run(dir, settings));
            let files = files.unwrap_or_default();
            macro_rules! open {
                ($backend:expr, $kind:path) => {{
                    let open = || TunedTower::open($backend, &model, &files);
                    $kind(match &run {
                        Some((dir, settings)) => of_one_epoch(dir, settings, open)?,
                        None => open()?,
                    })
                }};
            }
            let tower = match device {
                Device::Cpu(cpu) => open!(cpu, OpenTower::Cpu),
                Device::Cuda(gpu) => open!(gpu.clone(), OpenTower::Cuda),
            };
            Ok(Model { tower, model })
        })
    }

    /// Width of the features.
    #[getter]
    fn width(&self) -> usize {
        self.model.config.projection
    }

    /// Height and width of the images that the model sees, in pixels.
    #[getter]
    fn image_size(&self) -> usize {
        self.model.preprocess.image_size()
    }

    /// A hash of the model's weights: of the type, the shape and up to 16 KiB of every tensor.
    #[getter]
    fn weights(&self, py: Python<'_>) -> PyResult<String> {
        run(py, None, |_| Ok(self.model.weights_id()?.hash))
    }

    /// Features of files: f32 \[N, E\] of those that can be read, and by file why it cannot. Unless bad files are left
    /// out, the first raises.
    fn embed_files<'py>(
        &self,
        py: Python<'py>,
        files: Vec<PathBuf>,
        batch_size: usize,
        skip_bad_images: bool,
        watch: Option<Py<PyAny>>,
    ) -> PyResult<(Bound<'py, PyBytes>, Vec<Option<String>>)> {
        let options = EmbedOptions { batch: batch_size, skip_bad_images };
        let (features, problems) =
            run(py, watch, |monitor| self.embed(files.into_iter().map(Ok), options, monitor))?;
        Ok((PyBytes::new(py, &features), problems))
    }

    /// Features of photos that are decoded: f32 \[N, E\].
    fn embed_arrays<'py>(
        &self,
        py: Python<'py>,
        images: Vec<Decoded>,
        batch_size: usize,
        watch: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let photos = decoded(images)?;
        let options = EmbedOptions { batch: batch_size, skip_bad_images: false };
        let (features, _) =
            run(py, watch, |monitor| self.embed(photos.into_iter().map(Ok), options, monitor))?;
        Ok(PyBytes::new(py, &features))
    }

    /// Features of texts: f32 \[N, E\].
    fn embed_text<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<String>,
        watch: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let found = run(py, watch, |monitor| {
            let features = match &self.tower {
                OpenTower::Cpu(tower) => self.model.text_features(tower.backend(), &texts, monitor)?,
                OpenTower::Cuda(tower) => self.model.text_features(tower.backend(), &texts, monitor)?,
            };
            Ok(features.view().to_tensor(DType::F32)?.bytes().to_vec())
        });
        Ok(PyBytes::new(py, &found?))
    }
}

impl Model {
    fn embed<P: Photo>(
        &self,
        photos: impl Iterator<Item = Result<P, TrainError>> + Send,
        options: EmbedOptions,
        monitor: &Watch,
    ) -> Result<(Vec<u8>, Vec<Option<String>>)> {
        let (mut features, mut problems) = (Vec::new(), Vec::new());
        let take = |batch: &[(P, Row<'_>)]| {
            for (_, row) in batch {
                row.iter().copied().flatten().for_each(|x| features.extend(x.to_le_bytes()));
                problems.push(row.as_ref().err().cloned());
            }
            Ok(())
        };
        match &self.tower {
            OpenTower::Cpu(tower) => embed(tower, photos, options, monitor, take)?,
            OpenTower::Cuda(tower) => embed(tower, photos, options, monitor, take)?,
        }
        Ok((features, problems))
    }
}
