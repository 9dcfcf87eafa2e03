//! Oxford Flowers-102 from its home or a mirror, in torchvision's layout: ROOT/flowers-102/.

pub use super::archive::Bounds;
use super::archive::unpack;
use super::http::{Http, Limits, Wanted};
use super::lock;
use super::sum::Sum;
use super::{FetchError, Result};
use crate::progress::Monitor;
use std::path::{Path, PathBuf};

/// The environment variable that names a mirror.
const MIRROR: &str = "CLIP_ENGINE_FLOWERS102_URL";

const HOME: &str = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/";

/// The photos' archive has 345 MB; no file of the data set is larger than this.
const LIMIT: u64 = 1 << 30;

/// The data set's files: where they are offered and what their bytes must come to.
#[derive(Debug, Clone)]
pub struct Flowers102 {
    /// Address in front of the files' names; it ends in a slash.
    pub url: String,
    /// MD5 of `102flowers.tgz`, the photos; in hexadecimal digits.
    pub archive_md5: String,
    /// MD5 of `imagelabels.mat`, the labels; in hexadecimal digits.
    pub labels_md5: String,
    /// MD5 of `setid.mat`, the splits; in hexadecimal digits.
    pub splits_md5: String,
    /// How patient to be with the server.
    pub limits: Limits,
    /// How much the archive may hold.
    pub bounds: Bounds,
}

impl Flowers102 {
    /// The published files, from their home or a mirror: CLIP_ENGINE_FLOWERS102_URL.
    pub fn published() -> Self {
        let mirror = std::env::var(MIRROR).ok().filter(|url| !url.is_empty());
        let mut url = mirror.unwrap_or_else(|| HOME.to_owned());
        if !url.ends_with('/') {
            url.push('/');
        }
        Flowers102 {
            url,
            archive_md5: "52808999861908f626f3c1f4e79d11fa".into(),
            labels_md5: "e0620be6f572b9609742df49c70aed4d".into(),
            splits_md5: "a5357ecc9cb78c4bef273ce3793fc85c".into(),
            limits: Limits::default(),
            bounds: Bounds::default(),
        }
    }

    /// Sees to it that `root` holds the data set, fetching what is missing or wrong.
    ///
    /// # Errors
    /// Every error but an interruption says where to put the files by hand.
    pub fn fetch(&self, root: &Path, monitor: &dyn Monitor) -> Result<()> {
        let folder = folder(root);
        self.complete(&folder, monitor).map_err(|error| match error {
            FetchError::Interrupted => FetchError::Interrupted,
            error => FetchError::Flowers { source: Box::new(error), folder },
        })
    }

    fn complete(&self, folder: &Path, monitor: &dyn Monitor) -> Result<()> {
        let photos = folder.join("jpg");
        let lists = [("imagelabels.mat", &self.labels_md5), ("setid.mat", &self.splits_md5)];
        let right = |name: &str, md5: &str| self.is_right(&folder.join(name), md5);
        if photos.is_dir() && right(lists[0].0, lists[0].1)? && right(lists[1].0, lists[1].1)? {
            return Ok(());
        }
        let _lock = lock::hold(&folder.join(".lock"), monitor)?;
        for (name, md5) in lists {
            self.fetch_file(name, md5, folder, monitor)?;
        }
        // The photos' folder gets its name when all of them are in it; the archive may be deleted then.
        if !photos.is_dir() {
            let name = "102flowers.tgz";
            self.fetch_file(name, &self.archive_md5, folder, monitor)?;
            unpack(&folder.join(name), folder, self.bounds, monitor)?;
        }
        monitor.line(&format!("Flowers-102 is in {}", folder.display()));
        Ok(())
    }

    fn is_right(&self, path: &Path, md5: &str) -> Result<bool> {
        Ok(path.is_file() && Sum::Md5(md5.to_owned()).mismatch(path)?.is_none())
    }

    fn fetch_file(&self, name: &str, md5: &str, folder: &Path, monitor: &dyn Monitor) -> Result<()> {
        let target = folder.join(name);
        if self.is_right(&target, md5)? {
            return Ok(());
        }
        let url = format!("{}{name}", self.url);
        monitor.line(&format!("fetching {url}"));
        let sum = Sum::Md5(md5.to_owned());
        let wanted = Wanted { url, name: name.to_owned(), size: None, limit: LIMIT, sum };
        Http::new(self.limits).fetch(&wanted, &target, monitor)
    }
}

/// The folder of the data set in `root`.
pub fn folder(root: &Path) -> PathBuf {
    root.join("flowers-102")
}
