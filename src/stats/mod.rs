//! Statistics of few images, in f64: how sure a score is, how far confidences can be trusted, and the classifier
//! that features alone make. Nothing here knows models, data sets or devices.

pub mod interval;
