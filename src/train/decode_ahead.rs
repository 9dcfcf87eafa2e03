//! Batches of photos, decoded on all cores while the device works on those before.

use super::{Result, TrainError};
use crate::data::decode::SixteenBit;
use crate::data::resize::RgbImage;
use crate::data::{DataError, Preprocess, decode};
use crate::progress::Monitor;
use crate::tensor::{DType, Tensor};

use rayon::prelude::*;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::thread;

/// Decoded batches that may wait for the device. Beside them one is in the works at either end, which bounds
/// the memory whatever the number of photos.
const AHEAD: usize = 1;

/// A photo that a model is to look at.
pub trait Photo: Send + Sync {
    /// Its name in messages.
    fn path(&self) -> &Path;

    /// Its pixels \[S, S, 3\], u8, as the model sees them, and the largest value of 16-bit grey of which the upper 8 bits
    /// were kept.
    ///
    /// # Errors
    /// A file that cannot be read or decoded.
    fn pixels(&self, preprocess: &Preprocess) -> Result<(Vec<u8>, Option<u16>), DataError>;
}

impl<P: Photo> Photo for &P {
    fn path(&self) -> &Path {
        (**self).path()
    }

    fn pixels(&self, preprocess: &Preprocess) -> std::result::Result<(Vec<u8>, Option<u16>), DataError> {
        (**self).pixels(preprocess)
    }
}

/// A file.
impl Photo for PathBuf {
    fn path(&self) -> &Path {
        self
    }

    fn pixels(&self, preprocess: &Preprocess) -> Result<(Vec<u8>, Option<u16>), DataError> {
        preprocess.read(self, &decode::read(self)?)
    }
}

/// A photo that is decoded and upright.
#[derive(Debug, Clone)]
pub struct DecodedPhoto {
    /// Its name in messages.
    pub name: PathBuf,
    /// Its pixels, of any size.
    pub image: RgbImage,
}

impl Photo for DecodedPhoto {
    fn path(&self) -> &Path {
        &self.name
    }

    fn pixels(&self, preprocess: &Preprocess) -> Result<(Vec<u8>, Option<u16>), DataError> {
        Ok((preprocess.resize_crop(&self.image), None))
    }
}

/// Photos that follow each other.
pub(crate) struct PhotoBatch<P> {
    pub photos: Vec<P>,
    /// u8 \[n, S, S, 3\]: those that could be decoded, in order.
    pub pixels: Tensor,
    /// For each photo why it could not be; none for those in `pixels`.
    pub problems: Vec<Option<DataError>>,
    /// Which of the photos keep the upper 8 bits of 16-bit grey, and their largest values.
    sixteen_bit: Vec<(usize, u16)>,
}

/// Hands all photos to `take` in their order, `batch` at a time, until it breaks off, and warns once of
/// those of 16-bit grey. No more of them are asked for than are decoded.
///
/// # Errors
/// Errors of `take`, and a system that starts no thread. Those of `photos`, when what came before is taken. A photo that
/// cannot be decoded is passed on to `take`.
pub(crate) fn decode_ahead<P: Photo>(
    mut photos: impl Iterator<Item = Result<P>> + Send,
    preprocess: &Preprocess,
    batch: usize,
    monitor: &dyn Monitor,
    mut take: impl FnMut(PhotoBatch<P>) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let batch = batch.max(1);
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(AHEAD);
        let decode_all = move || {
            loop {
                let mut problem = None;
                let next: Vec<P> = (photos.by_ref().take(batch))
                    .map_while(|photo| photo.map_err(|error| problem = Some(error)).ok())
                    .collect();
                let ended = next.len() < batch;
                // Nobody receives any more once `take` has broken off.
                if !next.is_empty() && sender.send(decode_batch(next, preprocess)).is_err() {
                    break;
                }
                if let Some(problem) = problem {
                    let _ = sender.send(Err(problem));
                }
                if ended {
                    break;
                }
            }
        };
        let decoder = thread::Builder::new().name("decode photos".into()).spawn_scoped(scope, decode_all);
        decoder.map_err(|e| {
            let problem =
                format!("no thread to decode them can be started ({e}); raise the limit on processes");
            TrainError::file(Path::new("photos"), problem)
        })?;
        let mut sixteen_bit = SixteenBit::default();
        for decoded in receiver {
            let decoded = decoded?;
            for &(place, largest) in &decoded.sixteen_bit {
                sixteen_bit.add(decoded.photos[place].path(), largest);
            }
            if take(decoded)?.is_break() {
                break;
            }
        }
        if let Some(warning) = sixteen_bit.warning() {
            monitor.warn(&warning);
        }
        Ok(())
    })
}

/// Photos a batch, at most `batch` and no more than the list has, and how many the list has; 0 where it does not know.
pub(crate) fn batch_and_total<T>(photos: &impl Iterator<Item = T>, batch: usize) -> (usize, u64) {
    match photos.size_hint() {
        (least, Some(most)) if least == most => (batch.clamp(1, most.max(1)), most as u64),
        _ => (batch.max(1), 0),
    }
}

fn decode_batch<P: Photo>(photos: Vec<P>, preprocess: &Preprocess) -> Result<PhotoBatch<P>> {
    let decoded: Vec<_> = photos.par_iter().map(|photo| photo.pixels(preprocess)).collect();
    let (count, side) = (decoded.iter().filter(|photo| photo.is_ok()).count(), preprocess.image_size());
    let mut pixels = Tensor::zeros([count, side, side, 3], DType::U8);
    let mut free = pixels.bytes_mut().chunks_exact_mut(side * side * 3);
    let mut sixteen_bit = Vec::new();
    let problems = decoded.into_iter().enumerate().map(|(place, photo)| match photo {
        Ok((pixels, largest)) => {
            sixteen_bit.extend(largest.map(|largest| (place, largest)));
            if let Some(row) = free.next() {
                row.copy_from_slice(&pixels);
            }
            None
        }
        Err(problem) => Some(problem),
    });
    let problems = problems.collect();
    Ok(PhotoBatch { photos, pixels, problems, sixteen_bit })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    fn photos(dir: &Path, count: usize) -> Vec<PathBuf> {
        let photo = |i: usize| {
            let path = dir.join(format!("{i}.bmp"));
            image::RgbImage::from_pixel(8, 8, image::Rgb([i as u8; 3])).save(&path).unwrap();
            path
        };
        (0..count).map(photo).collect()
    }

    #[test]
    fn photos_come_in_order_with_the_bad_ones_in_their_places() {
        let dir = tempfile::tempdir().unwrap();
        let paths = photos(dir.path(), 7);
        for bad in [1, 4, 5] {
            std::fs::write(&paths[bad], "no image").unwrap();
        }
        let mut found = Vec::new();
        decode_ahead(paths.iter().map(Ok), &Preprocess::clip(8), 2, &Silent, |batch| {
            let pixels: Vec<u8> = batch.pixels.bytes().chunks_exact(192).map(|p| p[0]).collect();
            assert_eq!(batch.problems.len(), batch.photos.len());
            for (photo, problem) in batch.photos.iter().zip(&batch.problems) {
                assert_eq!(problem.is_some(), [1, 4, 5].map(|bad| &paths[bad]).contains(photo), "{photo:?}");
            }
            found.push((batch.photos, pixels));
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        let at = |places: std::ops::Range<usize>| paths[places].iter().collect::<Vec<_>>();
        let expected = [(at(0..2), vec![0]), (at(2..4), vec![2, 3]), (at(4..6), vec![]), (at(6..7), vec![6])];
        assert_eq!(found, expected);
    }

    #[test]
    fn an_error_of_the_list_comes_when_what_was_before_it_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let paths = photos(dir.path(), 5);
        for (place, before) in [(0, vec![]), (3, vec![2, 1]), (4, vec![2, 2])] {
            let list = paths.iter().enumerate().map(|(i, path)| match i == place {
                true => Err(TrainError::file(path, "of the list")),
                false => Ok(path),
            });
            let mut taken = Vec::new();
            let error = decode_ahead(list, &Preprocess::clip(8), 2, &Silent, |batch| {
                taken.push(batch.photos.len());
                Ok(ControlFlow::Continue(()))
            });
            assert!(error.unwrap_err().to_string().contains("of the list"));
            assert_eq!(taken, before, "{place}");
        }
    }

    #[test]
    fn decoding_is_some_batches_ahead_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let paths = photos(dir.path(), 20);
        let mut readable = Vec::new();
        let listed = AtomicUsize::new(0);
        let list = paths.iter().map(|path| {
            listed.fetch_add(1, Ordering::SeqCst);
            Ok(path)
        });
        decode_ahead(list, &Preprocess::clip(8), 2, &Silent, |batch| {
            if readable.is_empty() {
                // Whoever decodes without end has time for all of them before they go away.
                thread::sleep(Duration::from_millis(500));
                // Beside this batch one may wait, and one more wait for its place.
                assert_eq!(listed.load(Ordering::SeqCst), 2 * (AHEAD + 2), "asked for");
                paths[2 * (AHEAD + 2)..].iter().for_each(|path| std::fs::remove_file(path).unwrap());
            }
            readable.extend(batch.problems.iter().map(Option::is_none));
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        let decoded = readable.iter().filter(|&&readable| readable).count();
        assert_eq!(readable.len(), 20);
        assert!(decoded > 2 && decoded <= 2 * (AHEAD + 2), "{readable:?}");
    }

    #[test]
    fn breaking_off_ends_the_decoding() {
        let dir = tempfile::tempdir().unwrap();
        let paths = photos(dir.path(), 20);
        let mut batches = 0;
        let mut end = |result: fn() -> Result<ControlFlow<()>>| {
            decode_ahead(paths.iter().map(Ok), &Preprocess::clip(8), 1, &Silent, |_| {
                batches += 1;
                result()
            })
        };
        end(|| Ok(ControlFlow::Break(()))).unwrap();
        end(|| Err(DataError::Interrupted.into())).unwrap_err();
        assert_eq!(batches, 2);
    }
}
