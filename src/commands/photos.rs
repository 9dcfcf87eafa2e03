//! The photos that a command is given: files, folders, and lists from standard input, which are read as they are needed.

use crate::TrainError;
use crate::data::images_below;
use crate::progress::Monitor;
use anyhow::{Result, bail};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::vec;

/// Whose lines are a list.
const LIST: &str = "-";
const STANDARD_INPUT: &str = "standard input";
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Photos in the order in which they were named; those of a folder in that of their paths. How many there are is known
/// unless a list is among them, of which a line at a time is in memory.
pub struct Photos<'m> {
    /// Photos that come next.
    next: vec::IntoIter<PathBuf>,
    /// What follows them.
    rest: VecDeque<Source>,
    monitor: &'m dyn Monitor,
}

enum Source {
    Photos(Vec<PathBuf>),
    List(List),
}

/// Lines, each a photo or a folder.
struct List {
    lines: Box<dyn BufRead + Send>,
    begun: bool,
}

impl<'m> Photos<'m> {
    /// Photos, folders of photos, and `-` for the list in standard input.
    ///
    /// # Errors
    /// A folder without photos, and what cannot be a path.
    pub fn named(arguments: &[PathBuf], monitor: &'m dyn Monitor) -> Result<Self> {
        Photos::from(arguments, || Box::new(BufReader::new(std::io::stdin())), monitor)
    }

    fn from(
        arguments: &[PathBuf],
        input: impl Fn() -> Box<dyn BufRead + Send>,
        monitor: &'m dyn Monitor,
    ) -> Result<Self> {
        let mut rest = VecDeque::new();
        for argument in arguments {
            if argument.as_os_str() == LIST {
                rest.push_back(Source::List(List { lines: input(), begun: false }));
                continue;
            }
            let photos = photos_of(argument.clone(), monitor)?;
            if !argument.is_dir() {
                check(argument)?;
            }
            match rest.back_mut() {
                Some(Source::Photos(before)) => before.extend(photos),
                _ => rest.push_back(Source::Photos(photos)),
            }
        }
        Ok(Photos { next: Vec::new().into_iter(), rest, monitor })
    }

    /// How many there are; none where a list would have to be read for that.
    pub fn known(&self) -> Option<usize> {
        self.size_hint().1
    }

    /// Looks at the first photos, at `most` so many of a list, without taking them.
    pub(crate) fn first(&mut self, most: usize) -> Result<&[PathBuf], TrainError> {
        let most = self.known().unwrap_or(most);
        let first = self.by_ref().take(most).collect::<Result<Vec<_>, _>>()?;
        let next = std::mem::replace(&mut self.next, first.into_iter());
        self.rest.push_front(Source::Photos(next.collect()));
        Ok(self.next.as_slice())
    }
}

impl Iterator for Photos<'_> {
    type Item = Result<PathBuf, TrainError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(photo) = self.next.next() {
                return Some(Ok(photo));
            }
            match self.rest.front_mut()? {
                Source::Photos(photos) => {
                    self.next = std::mem::take(photos).into_iter();
                    self.rest.pop_front();
                }
                Source::List(list) => match list.path() {
                    Ok(Some(path)) => match photos_of(path, self.monitor) {
                        Ok(photos) => self.next = photos.into_iter(),
                        Err(error) => return Some(Err(error.into())),
                    },
                    Ok(None) => drop(self.rest.pop_front()),
                    Err(error) => {
                        self.rest.clear();
                        return Some(Err(error));
                    }
                },
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let known = |source: &Source| match source {
            Source::Photos(photos) => Some(photos.len()),
            Source::List(_) => None,
        };
        let least = self.next.len() + self.rest.iter().filter_map(known).sum::<usize>();
        (least, self.rest.iter().all(|source| known(source).is_some()).then_some(least))
    }
}

/// A photo, or those of a folder in the order of their paths.
fn photos_of(path: PathBuf, monitor: &dyn Monitor) -> Result<Vec<PathBuf>, crate::data::DataError> {
    if !path.is_dir() {
        return Ok(vec![path]);
    }
    let (photos, left_out) = images_below(&path)?;
    left_out.iter().for_each(|warning| monitor.warn(warning));
    Ok(photos)
}

/// Refuses what cannot be a path.
fn check(path: &Path) -> Result<()> {
    let name = path.to_string_lossy();
    if name.contains("://") {
        bail!("{name}: an address on the net, and predict reads files; download it first");
    }
    if name.contains(['*', '?', '[']) && path.symlink_metadata().is_err() {
        bail!("{name}: no file matches; check the folder and the ending, or name the folder alone");
    }
    Ok(())
}

impl List {
    /// The next line that is not empty, in any line ending and with or without a byte order mark.
    fn path(&mut self) -> Result<Option<PathBuf>, TrainError> {
        let problem = |text: String| TrainError::file(Path::new(STANDARD_INPUT), text);
        loop {
            let mut line = Vec::new();
            let read = self.lines.read_until(b'\n', &mut line);
            if read.map_err(|e| problem(format!("cannot be read ({e}); give it a file or a pipe")))? == 0 {
                return Ok(None);
            }
            line.pop_if(|byte| *byte == b'\n');
            if !std::mem::replace(&mut self.begun, true) && line.starts_with(BYTE_ORDER_MARK) {
                line.drain(..BYTE_ORDER_MARK.len());
            }
            // The end of a line as Windows has it, unless a file is called so.
            let named =
                |line: &[u8]| path_of(line.to_vec()).is_some_and(|path| path.symlink_metadata().is_ok());
            if line.ends_with(b"\r") && !named(&line) {
                line.pop();
            }
            if !line.is_empty() {
                let path = path_of(line);
                return path
                    .map(Some)
                    .ok_or_else(|| problem("a path is not UTF-8; name its folder instead".into()));
            }
        }
    }
}

/// Whatever bytes a name has, where the system allows any.
fn path_of(line: Vec<u8>) -> Option<PathBuf> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStringExt;
        Some(std::ffi::OsString::from_vec(line).into())
    }
    #[cfg(not(unix))]
    String::from_utf8(line).ok().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use std::io::{Cursor, Read};

    fn folder(dir: &Path, name: &str, photos: usize) -> PathBuf {
        let folder = dir.join(name);
        std::fs::create_dir(&folder).unwrap();
        (0..photos).for_each(|i| std::fs::write(folder.join(format!("{i}.jpg")), "").unwrap());
        folder
    }

    #[test]
    fn files_folders_and_lists_come_in_the_order_in_which_they_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (folder(dir.path(), "a", 3), folder(dir.path(), "b", 2));
        let text = format!("\u{feff}one.jpg\r\n\n{}\nlast.jpg", b.display());
        let named = |arguments: &[&Path]| {
            let arguments: Vec<PathBuf> = arguments.iter().map(|path| path.to_path_buf()).collect();
            let text = text.clone();
            Photos::from(&arguments, move || Box::new(Cursor::new(text.clone())), &Silent).unwrap()
        };
        let known = named(&[Path::new("x.png"), &a]);
        assert_eq!(known.size_hint(), (4, Some(4)));
        assert_eq!(known.count(), 4);
        let mut photos = named(&[&a, Path::new("-"), Path::new("x.png")]);
        assert_eq!(photos.size_hint(), (4, None));
        assert_eq!(photos.first(4).unwrap()[3], Path::new("one.jpg"));
        assert_eq!(photos.first(5).unwrap()[4], b.join("0.jpg"));
        let found: Vec<PathBuf> = photos.by_ref().map(Result::unwrap).collect();
        let expected = [
            a.join("0.jpg"),
            a.join("1.jpg"),
            a.join("2.jpg"),
            "one.jpg".into(),
            b.join("0.jpg"),
            b.join("1.jpg"),
            "last.jpg".into(),
            "x.png".into(),
        ];
        assert_eq!(found, expected);
        assert_eq!(photos.size_hint(), (0, Some(0)));
    }

    #[test]
    fn a_list_is_read_no_further_than_is_asked_for_and_ends_at_its_first_error() {
        struct Broken(usize);
        impl Read for Broken {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                self.0 += 1;
                match self.0 {
                    1..=3 => {
                        buffer[..6].copy_from_slice(b"a.jpg\n");
                        Ok(6)
                    }
                    _ => Err(std::io::Error::other("the pipe is broken")),
                }
            }
        }
        let input = || Box::new(BufReader::new(Broken(0))) as Box<dyn BufRead + Send>;
        let mut photos = Photos::from(&["-".into(), "b.jpg".into()], input, &Silent).unwrap();
        for _ in 0..3 {
            assert_eq!(photos.next().unwrap().unwrap(), Path::new("a.jpg"));
        }
        let error = photos.next().unwrap().unwrap_err().to_string();
        assert!(error.contains(STANDARD_INPUT) && error.contains("the pipe is broken"), "{error}");
        assert!(photos.next().is_none());
    }
}
