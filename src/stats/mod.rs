//! Statistics of few images, in f64: how sure a score is, how far confidences can be trusted, and the classifier
//! that features alone make. Nothing here knows models, data sets or devices.

pub(crate) mod calibration;
pub(crate) mod counting;
pub(crate) mod discriminant;
pub(crate) mod heads;
pub mod interval;
pub(crate) mod judged;
pub(crate) mod linear;
pub(crate) mod logistic;
pub(crate) mod photos;
mod span;
pub(crate) mod temperature;

use thiserror::Error;

/// Errors in the numbers that a classifier is to be fitted to.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum StatsError {
    /// There is nothing to fit.
    #[error("no images to fit a classifier to; give at least one")]
    NoImages,
    /// A slice is not as long as its shape.
    #[error("{what} hold {found} numbers where {rows} rows of {columns} were expected; check their shape")]
    Length {
        /// "features" or "offsets".
        what: &'static str,
        /// Numbers in the slice.
        found: usize,
        /// Images, by the number of labels.
        rows: usize,
        /// Width of the features, or classes.
        columns: usize,
    },
    /// A feature or an offset is infinite or not a number.
    #[error("{what} of image {row} (from 0) are not finite; leave the image out or compute them anew")]
    NotFinite {
        /// "features" or "offsets".
        what: &'static str,
        /// Number of the image.
        row: usize,
    },
    /// A label without a class.
    #[error("label {label} of image {row} (from 0) is not below the number of classes, {classes}")]
    Label {
        /// Number of the image.
        row: usize,
        /// Label of the image.
        label: u32,
        /// Number of classes.
        classes: usize,
    },
    /// The values of C are not a path.
    #[error("C must be positive, finite and ascending; got {0:?}")]
    Path(Vec<f64>),
}
