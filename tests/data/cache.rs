//! The cache holds the right pixels, notices every change, and never leaves half a file behind.

use crate::files::photo;
use clip_engine::backend::prelude::*;

use clip_engine::backend::cpu::Cpu;
use clip_engine::data::decode::{Orientation, decode};
use clip_engine::data::{
    Augmentation, Cache, CacheOptions, DataError, Dataset, MemoryImage, Preprocess, Split, larger_side,
};
use clip_engine::progress::{Monitor, Silent};
use clip_engine::tensor::{DType, Tensor};
use half::f16;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

const SIDE: usize = 16;

/// A folder of photos, split by folders, and a folder for caches.
struct Workspace {
    photos: TempDir,
    caches: TempDir,
}

impl Workspace {
    /// Two classes, of every photo in `names` one copy per class in train and of the first in val.
    fn new(names: &[&str]) -> Workspace {
        let workspace =
            Workspace { photos: tempfile::tempdir().unwrap(), caches: tempfile::tempdir().unwrap() };
        for class in ["daisy", "rose"] {
            for (i, name) in names.iter().enumerate() {
                workspace.add(&format!("train/{class}/{i:03}_{name}"), name);
            }
            workspace.add(&format!("val/{class}/{}", names[0]), names[0]);
        }
        workspace
    }

    fn add(&self, place: &str, name: &str) -> PathBuf {
        let to = self.photos.path().join(place);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(photo(name), &to).unwrap();
        to
    }

    fn source(&self) -> Dataset {
        Dataset::open(self.photos.path(), 0).unwrap()
    }

    fn build(&self, dtype: DType, options: &CacheOptions, monitor: &dyn Monitor) -> Result<Cache, DataError> {
        let preprocess = Preprocess::clip(SIDE);
        Cache::open_or_build(&self.source(), &preprocess, dtype, self.caches.path(), options, monitor)
    }

    fn cache(&self) -> Cache {
        self.build(DType::U8, &CacheOptions::default(), &Silent).unwrap()
    }

    /// Everything in the cache folder, hidden files among it.
    fn files(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.caches.path()).unwrap().map(|e| e.unwrap().path()).collect()
    }
}

const PHOTOS: [&str; 5] = ["base_420_q95.jpg", "rgb.png", "grey.jpg", "lossy.webp", "size_1x1.jpg"];

/// Remembers what it was told; says stop after a number of units.
struct Recorder {
    stop_after: u64,
    total: AtomicU64,
    done: AtomicU64,
    lines: Mutex<Vec<String>>,
    finished: AtomicU64,
}

impl Recorder {
    fn new(stop_after: u64) -> Recorder {
        Recorder {
            stop_after,
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            lines: Mutex::new(Vec::new()),
            finished: AtomicU64::new(0),
        }
    }
}

impl Monitor for Recorder {
    fn begin(&self, _task: &str, total: u64) {
        self.total.store(total, Ordering::SeqCst);
    }
    fn advance(&self, units: u64) {
        self.done.fetch_add(units, Ordering::SeqCst);
    }
    fn state(&self, _text: &str) {}
    fn finish(&self) {
        self.finished.fetch_add(1, Ordering::SeqCst);
    }
    fn line(&self, text: &str) {
        self.lines.lock().unwrap().push(text.to_owned());
    }
    fn stopped(&self) -> bool {
        self.done.load(Ordering::SeqCst) >= self.stop_after
    }
}

#[test]
fn every_image_holds_the_pixels_of_its_own_photo() {
    let workspace = Workspace::new(&PHOTOS);
    let source = workspace.source();
    let preprocess = Preprocess::clip(SIDE);
    let monitor = Recorder::new(u64::MAX);
    for dtype in [DType::U8, DType::F16, DType::F32] {
        let cache = workspace.build(dtype, &CacheOptions::default(), &monitor).unwrap();
        assert_eq!((cache.dtype(), cache.len(), cache.class_names()), (dtype, 12, &source.class_names[..]));
        assert_eq!(cache.bytes(), (12 * SIDE * SIDE * 3 * dtype.size()) as u64);
        assert_eq!(cache.preprocess(), &preprocess);
        for split in Split::ALL {
            let (view, items) = (cache.split(split), source.split(split));
            assert_eq!(view.len(), items.len());
            assert_eq!(view.labels(), items.iter().map(|i| i.label).collect::<Vec<_>>());
            for (i, item) in items.iter().enumerate() {
                assert_eq!(view.path(i).unwrap(), item.path);
                let pixels = preprocess.resize_crop(&decode(&item.path, Orientation::Exif).unwrap().image);
                let mut values = vec![0.0f32; pixels.len()];
                preprocess.normalise(&pixels, &mut values);
                let halves: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
                let (shape, expected): (_, &[u8]) = match dtype {
                    DType::U8 => ([SIDE, SIDE, 3], &pixels),
                    DType::F16 => ([3, SIDE, SIDE], bytemuck::cast_slice(&halves)),
                    _ => ([3, SIDE, SIDE], bytemuck::cast_slice(&values)),
                };
                let image = view.image(i).unwrap();
                assert_eq!((image.shape().dims(), image.dtype()), (&shape[..], dtype));
                assert_eq!(image.bytes(), expected, "{dtype} {}", item.path.display());
                assert_eq!(image.bytes().as_ptr() as usize % dtype.size(), 0);
            }
            assert!(view.image(view.len()).is_err() && view.path(view.len()).is_none());
        }
    }
    let count = |n: &AtomicU64| n.load(Ordering::SeqCst);
    assert_eq!((count(&monitor.total), count(&monitor.done), count(&monitor.finished)), (12, 36, 3));
    assert_eq!(workspace.files().len(), 3, "one file per element type");
    assert!(workspace.build(DType::BF16, &CacheOptions::default(), &Silent).is_err());
}

#[test]
fn the_images_asked_for_make_a_batch() {
    let workspace = Workspace::new(&PHOTOS);
    for dtype in [DType::U8, DType::F16] {
        let cache = workspace.build(dtype, &CacheOptions::default(), &Silent).unwrap();
        let train = cache.split(Split::Train);
        let val = cache.split(Split::Val);
        let found = train.batch(&[9, 0, 3, 3]).unwrap();
        for (row, i) in [9, 0, 3, 3].into_iter().enumerate() {
            assert_eq!(found.view().rows(row, 1).unwrap().bytes(), train.image(i).unwrap().bytes());
        }
        assert_ne!(train.image(9).unwrap().bytes(), train.image(0).unwrap().bytes());
        assert_eq!(val.batch(&[1]).unwrap().bytes(), val.image(1).unwrap().bytes());
        assert!(matches!(val.batch(&[0, 2]), Err(DataError::Index { index: 2, len: 2 })));
    }
}

#[test]
fn a_second_open_reuses_and_every_change_rebuilds() {
    let workspace = Workspace::new(&PHOTOS);
    assert!(!workspace.cache().reused());
    let monitor = Recorder::new(u64::MAX);
    let again = workspace.build(DType::U8, &CacheOptions::default(), &monitor).unwrap();
    assert!(again.reused() && monitor.done.load(Ordering::SeqCst) == 0);
    let before = again.split(Split::Train).image(1).unwrap().bytes().to_vec();

    // Another photo under the same name; the cache in use keeps its pixels.
    let changed = workspace.add("train/daisy/001_rgb.png", "grey.png");
    let new = workspace.cache();
    assert!(!new.reused());
    assert_ne!(new.split(Split::Train).image(1).unwrap().bytes(), before);
    assert_eq!(again.split(Split::Train).image(1).unwrap().bytes(), before);

    // The same content, another time.
    let file = std::fs::File::options().write(true).open(&changed).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(1000)).unwrap();
    assert!(!workspace.cache().reused());

    // A photo more, a photo renamed, a photo less, a class renamed.
    let added = workspace.add("val/rose/extra.png", "rgb.png");
    assert_eq!(workspace.cache().split(Split::Val).len(), 3);
    std::fs::rename(&added, added.with_file_name("other.png")).unwrap();
    assert!(!workspace.cache().reused());
    std::fs::remove_file(added.with_file_name("other.png")).unwrap();
    assert!(!workspace.cache().reused());
    for split in ["train", "val"] {
        let folder = workspace.photos.path().join(split);
        std::fs::rename(folder.join("rose"), folder.join("tulip")).unwrap();
    }
    let renamed = workspace.cache();
    assert!(!renamed.reused());
    assert_eq!(renamed.class_names(), ["daisy", "tulip"]);
    assert_eq!(workspace.files().len(), 1, "newer caches replace older ones");
    assert!(workspace.cache().reused());

    // Another image size is another cache, beside the first.
    let source = workspace.source();
    let build = |size| {
        let preprocess = Preprocess::clip(size);
        let options = CacheOptions::default();
        Cache::open_or_build(&source, &preprocess, DType::U8, workspace.caches.path(), &options, &Silent)
            .unwrap()
    };
    let larger = build(SIDE * 2);
    assert!(!larger.reused());
    assert_eq!(larger.image_shape().dims(), [SIDE * 2, SIDE * 2, 3]);
    assert!(build(SIDE * 2).reused() && build(SIDE).reused());
}

#[cfg(unix)]
#[test]
fn photos_that_change_places_are_noticed_whatever_their_sizes_and_times() {
    let workspace = Workspace::new(&["rgb.png"]);
    let time = SystemTime::now() - Duration::from_secs(5000);
    let train = workspace.photos.path().join("train");
    for (class, grey) in [("daisy", 10), ("rose", 200)] {
        for i in 0..3 {
            let path = train.join(class).join(format!("{i}.bmp"));
            image::RgbImage::from_pixel(20, 20, image::Rgb([grey + i; 3])).save(&path).unwrap();
            std::fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
        }
    }
    let before = workspace.cache();
    std::fs::rename(train.join("rose"), train.join("x")).unwrap();
    std::fs::rename(train.join("daisy"), train.join("rose")).unwrap();
    std::fs::rename(train.join("x"), train.join("daisy")).unwrap();
    let after = workspace.cache();
    assert!(!after.reused() && after.photos() != before.photos());
    assert_ne!(
        before.split(Split::Train).image(0).unwrap().bytes(),
        after.split(Split::Train).image(0).unwrap().bytes()
    );
    assert!(workspace.cache().reused());
    // Overwritten in place, size and time put back.
    let one = train.join("rose/1.bmp");
    image::RgbImage::from_pixel(20, 20, image::Rgb([77; 3])).save(&one).unwrap();
    std::fs::File::options().write(true).open(&one).unwrap().set_modified(time).unwrap();
    assert!(!workspace.cache().reused());
}

#[test]
fn a_copy_of_the_photos_is_the_same_photos() {
    let [one, copy] = [(); 2].map(|()| Workspace::new(&PHOTOS).cache().photos().to_owned());
    assert_eq!(one.len(), 64);
    assert_eq!(one, copy);
    let workspace = Workspace::new(&PHOTOS);
    std::fs::rename(workspace.photos.path().join("train/rose"), workspace.photos.path().join("train/x"))
        .unwrap();
    std::fs::rename(workspace.photos.path().join("val/rose"), workspace.photos.path().join("val/x")).unwrap();
    assert_eq!(workspace.cache().photos(), one, "labels count, names do not");
    workspace.add("train/x/more.png", "grey.png");
    assert_ne!(workspace.cache().photos(), one);
}

#[test]
fn the_same_photo_in_two_splits_or_classes_is_counted_and_said_or_refused() {
    // Of the daisies and roses each photo is in both classes, and the first in train and val.
    let workspace = Workspace::new(&PHOTOS);
    for reused in [false, true] {
        let monitor = Recorder::new(u64::MAX);
        let cache = workspace.build(DType::U8, &CacheOptions::default(), &monitor).unwrap();
        assert_eq!(cache.reused(), reused);
        let said = monitor.lines.lock().unwrap().join("\n");
        assert!(said.contains("1 photo is in train and in val (train/daisy/000_"), "{said}");
        assert!(said.contains("5 photos are in two classes (train/daisy/000_"), "{said}");
        assert_eq!(said.lines().count(), 2, "{said}");
    }
    let refuse = CacheOptions { refuse_duplicates: true, ..CacheOptions::default() };
    let error = workspace.build(DType::U8, &refuse, &Silent).unwrap_err();
    assert!(error.to_string().contains("in train and in val"), "{error}");
    // Said once, where a second cache of the same photos follows.
    let monitor = Recorder::new(u64::MAX);
    let said = CacheOptions { said: true, ..CacheOptions::default() };
    workspace.build(DType::U8, &said, &monitor).unwrap();
    assert!(monitor.lines.lock().unwrap().is_empty());
    let alone = Workspace { photos: tempfile::tempdir().unwrap(), caches: tempfile::tempdir().unwrap() };
    for (place, name) in
        [("train/a/1.png", "rgb.png"), ("train/b/1.png", "grey.png"), ("val/a/1.jpg", "grey.jpg")]
    {
        alone.add(place, name);
    }
    alone.build(DType::U8, &refuse, &Silent).unwrap();
}

#[cfg(unix)]
#[test]
fn a_link_to_nothing_is_a_bad_image() {
    let workspace = Workspace::new(&["rgb.png"]);
    let link = workspace.photos.path().join("train/rose/annexed.jpg");
    std::os::unix::fs::symlink("../../.git/annex/none.jpg", &link).unwrap();
    let error = workspace.build(DType::U8, &CacheOptions::default(), &Silent).unwrap_err().to_string();
    assert!(
        error.contains("annexed.jpg")
            && error.contains("a link to ../../.git/annex/none.jpg, which is not there"),
        "{error}"
    );
    let skip = CacheOptions { skip_bad_images: true, ..CacheOptions::default() };
    let cache = workspace.build(DType::U8, &skip, &Silent).unwrap();
    assert_eq!((cache.split(Split::Train).len(), cache.skipped().len()), (2, 1));
    assert!(workspace.build(DType::U8, &skip, &Silent).unwrap().reused());
    // Once its content is there the cache is built again.
    std::fs::remove_file(&link).unwrap();
    workspace.add("train/rose/annexed.jpg", "grey.jpg");
    assert_eq!(workspace.build(DType::U8, &skip, &Silent).unwrap().split(Split::Train).len(), 3);
}

#[test]
fn a_damaged_cache_is_noticed_and_built_again() {
    let workspace = Workspace::new(&PHOTOS);
    let path = workspace.cache().path().unwrap().to_path_buf();
    let whole = std::fs::read(&path).unwrap();
    let damage = |bytes: &[u8]| {
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let error = Cache::open(&path).expect_err("a damaged cache").to_string();
        assert!(error.contains(path.to_str().unwrap()) && !error.contains('\n'), "{error}");
    };
    // Cut anywhere, grown, or another file altogether.
    for length in [0, 7, 63, 64, 100, whole.len() / 2, whole.len() - 1] {
        damage(&whole[..length]);
    }
    damage(&[&whole[..], b"x"].concat());
    damage(&vec![b'x'; whole.len()]);
    // Every byte of the start and of the header is guarded, lengths among them.
    let pixels = 12 * SIDE * SIDE * 3;
    let guarded = (0..12).chain(16..64).chain(64 + pixels..whole.len());
    for at in guarded.filter(|at| *at < 64 || at % 7 == 0) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x80;
        damage(&bytes);
    }
    for length in [u64::MAX, u64::MAX - 64, 1 << 40] {
        let mut bytes = whole.clone();
        bytes[24..32].copy_from_slice(&length.to_le_bytes());
        damage(&bytes);
        bytes[16..24].copy_from_slice(&length.to_le_bytes());
        damage(&bytes);
    }
    let monitor = Recorder::new(u64::MAX);
    let rebuilt = workspace.build(DType::U8, &CacheOptions::default(), &monitor).unwrap();
    assert!(!rebuilt.reused());
    assert!(monitor.lines.lock().unwrap()[0].contains("building it again"));
    assert_eq!(std::fs::read(&path).unwrap(), whole);
}

#[test]
fn an_interrupted_preparation_leaves_nothing() {
    let many: Vec<&str> = PHOTOS.iter().copied().cycle().take(100).collect();
    let workspace = Workspace::new(&many);
    for stop_after in [0, 1, 50] {
        let monitor = Recorder::new(stop_after);
        let options = CacheOptions { threads: 2, ..CacheOptions::default() };
        let error = workspace.build(DType::U8, &options, &monitor).unwrap_err();
        assert!(matches!(error, DataError::Interrupted), "{error}");
        assert_eq!(workspace.files(), Vec::<PathBuf>::new());
        assert_eq!(monitor.finished.load(Ordering::SeqCst), 1);
        assert!(monitor.done.load(Ordering::SeqCst) <= stop_after + 2, "it went on");
    }
    // An interrupted rebuild keeps the cache that was there.
    workspace.cache();
    workspace.add("train/rose/new.jpg", "grey.jpg");
    let kept = std::fs::read(&workspace.files()[0]).unwrap();
    assert!(workspace.build(DType::U8, &CacheOptions::default(), &Recorder::new(3)).is_err());
    assert_eq!(std::fs::read(&workspace.files()[0]).unwrap(), kept);
    assert_eq!(workspace.files().len(), 1);
}

#[test]
fn what_a_killed_preparation_left_is_removed_by_the_next() {
    let workspace = Workspace::new(&PHOTOS);
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(600);
    let leave = |name: &str, age| {
        let path = workspace.caches.path().join(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_modified(age).unwrap();
        (path, file)
    };
    let (abandoned, _) = leave(".preparing-old.tmp", old);
    let (young, _) = leave(".preparing-new.tmp", std::time::SystemTime::now());
    let (foreign, _) = leave("notes.tmp", old);
    let (busy, lock) = leave(".preparing-busy.tmp", old);
    lock.lock().unwrap();
    workspace.cache();
    assert!(!abandoned.exists());
    assert!(young.exists() && foreign.exists() && busy.exists());
}

/// Cuts a photo in half.
fn truncate(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn the_first_bad_image_is_named_whatever_the_order_of_the_threads() {
    let many: Vec<&str> = PHOTOS[..2].iter().copied().cycle().take(150).collect();
    let workspace = Workspace::new(&many);
    for place in ["train/daisy/074_base_420_q95.jpg", "train/daisy/140_base_420_q95.jpg"] {
        truncate(&workspace.photos.path().join(place));
    }
    std::fs::write(workspace.photos.path().join("train/rose/000_base_420_q95.jpg"), "text").unwrap();
    for threads in [1, 2, 4, 7] {
        let options = CacheOptions { threads, ..CacheOptions::default() };
        let message = workspace.build(DType::U8, &options, &Silent).unwrap_err().to_string();
        let expected = ["074_base_420_q95.jpg", "cut short", "--skip-bad-images"];
        assert!(expected.iter().all(|text| message.contains(text)), "{message}");
        assert!(!message.contains('\n'));
        assert_eq!(workspace.files(), Vec::<PathBuf>::new());
    }
}

#[test]
fn bad_images_are_left_out_when_asked() {
    let workspace = Workspace::new(&PHOTOS);
    let clean = workspace.cache();
    let last = clean.split(Split::Train).image(9).unwrap().bytes().to_vec();
    truncate(&workspace.photos.path().join("train/daisy/002_grey.jpg"));
    std::fs::write(workspace.photos.path().join("train/rose/001_rgb.png"), "text").unwrap();
    let options = CacheOptions { skip_bad_images: true, ..CacheOptions::default() };
    let monitor = Recorder::new(u64::MAX);
    let cache = workspace.build(DType::U8, &options, &monitor).unwrap();
    let train = cache.split(Split::Train);
    assert_eq!((train.len(), cache.split(Split::Val).len()), (8, 2));
    assert_eq!(train.labels(), [0, 0, 0, 0, 1, 1, 1, 1]);
    assert_eq!(train.image(7).unwrap().bytes(), last);
    assert!(train.path(2).unwrap().ends_with("train/daisy/003_lossy.webp"));
    let skipped: Vec<&str> = cache.skipped().iter().map(|s| s.file.as_str()).collect();
    assert_eq!(skipped, ["train/daisy/002_grey.jpg", "train/rose/001_rgb.png"]);
    let lines = monitor.lines.lock().unwrap();
    assert!(lines[0].contains("left out 2") && lines[0].contains("002_grey.jpg"), "{lines:?}");
    // The list stays with the file; without the option the bad image is an error again.
    assert_eq!(workspace.build(DType::U8, &options, &Silent).unwrap().skipped().len(), 2);
    let strict = workspace.build(DType::U8, &CacheOptions::default(), &Silent);
    assert!(matches!(strict, Err(DataError::BadImage(_))));
    // Nothing left of a split is an error even then.
    for class in ["daisy", "rose"] {
        truncate(&workspace.photos.path().join(format!("val/{class}/base_420_q95.jpg")));
    }
    let error = workspace.build(DType::U8, &options, &Silent).unwrap_err();
    assert!(matches!(error, DataError::NothingLeft { split: Split::Val, .. }), "{error}");
}

#[test]
fn a_cache_is_of_one_orientation_and_knows_its_images_of_sixteen_bits() {
    let workspace = Workspace::new(&PHOTOS);
    let turned = workspace.add("train/daisy/turned.jpg", "turned_6.jpg");
    let bytes = std::fs::read(&turned).unwrap();
    for place in ["val/rose/a.tif", "val/rose/b.tif"] {
        workspace.add(place, "grey_16.tif");
    }
    let build = |preprocess: &Preprocess| {
        let (dir, options) = (workspace.caches.path(), CacheOptions::default());
        Cache::open_or_build(&workspace.source(), preprocess, DType::U8, dir, &options, &Silent).unwrap()
    };
    let upright = Preprocess::clip(SIDE);
    let stored = upright.with_orientation(Orientation::Ignore);
    let caches = [&upright, &stored].map(&build);
    assert!(!caches[1].reused());
    assert_ne!(caches[0].path(), caches[1].path());
    assert_ne!(caches[0].fingerprint(), caches[1].fingerprint());
    for (cache, preprocess) in caches.iter().zip([&upright, &stored]) {
        let train = cache.split(Split::Train);
        let at = (0..train.len()).find(|&i| train.path(i).unwrap() == turned).unwrap();
        assert_eq!(train.image(at).unwrap().bytes(), preprocess.read(&turned, &bytes).unwrap().0);
        let again = build(preprocess);
        assert!(again.reused());
        assert_eq!(again.preprocess(), preprocess);
        assert_eq!((again.sixteen_bit(), again.sixteen_bit().count), (cache.sixteen_bit(), 2));
        assert!(again.sixteen_bit().first.ends_with("val/rose/a.tif"));
    }
    assert_ne!(upright.read(&turned, &bytes).unwrap(), stored.read(&turned, &bytes).unwrap());
    assert_eq!(workspace.cache().sixteen_bit().count, 2);
}

#[test]
fn images_can_be_looked_at_whatever_the_type_of_the_cache() {
    let workspace = Workspace::new(&PHOTOS);
    let expected = workspace.cache();
    for dtype in [DType::U8, DType::F16, DType::F32] {
        let cache = workspace.build(dtype, &CacheOptions::default(), &Silent).unwrap();
        for split in Split::ALL {
            let (view, expected) = (cache.split(split), expected.split(split));
            for i in 0..view.len() {
                assert_eq!(view.rgb(i).unwrap(), expected.image(i).unwrap().bytes(), "{dtype} {split} {i}");
            }
            assert!(matches!(view.rgb(view.len()), Err(DataError::Index { .. })));
        }
    }
}

#[test]
fn larger_training_images_have_a_cache_of_their_own() {
    let workspace = Workspace::new(&PHOTOS);
    let source = workspace.source();
    let train = source.only(&[Split::Train]);
    assert_eq!((train.train.len(), train.len(), &train.class_names), (10, 10, &source.class_names));
    let build = |source: &Dataset, preprocess: &Preprocess| {
        let (folder, options) = (workspace.caches.path(), CacheOptions::default());
        Cache::open_or_build(source, preprocess, DType::U8, folder, &options, &Silent).unwrap()
    };
    let preprocess = Preprocess::clip(SIDE);
    let larger = preprocess.enlarged(larger_side(SIDE)).unwrap();
    assert_eq!(larger.image_size(), 18);
    let all = build(&source, &preprocess);
    // At another size and at the same, as where a model takes what another's crops are cut from.
    for preprocess in [&larger, &preprocess] {
        let cache = build(&train, preprocess);
        assert!(!cache.reused());
        assert_ne!(cache.path(), all.path());
        assert_ne!(cache.fingerprint(), all.fingerprint());
        assert_eq!((cache.split(Split::Train).len(), cache.len()), (10, 10));
        assert!(cache.split(Split::Val).is_empty() && cache.split(Split::Test).is_empty());
        assert_eq!(cache.split(Split::Train).labels(), all.split(Split::Train).labels());
        for (i, item) in source.train.iter().enumerate() {
            assert_eq!(cache.split(Split::Train).path(i), all.split(Split::Train).path(i));
            let pixels = preprocess.resize_crop(&decode(&item.path, Orientation::Exif).unwrap().image);
            assert_eq!(cache.split(Split::Train).image(i).unwrap().bytes(), pixels);
        }
        assert!(build(&train, preprocess).reused());
    }
    assert!(build(&source, &preprocess).reused(), "the others have not replaced it");
    assert_eq!(workspace.files().len(), 3);
    // A split that the data does not have.
    let none = build(&source.only(&[Split::Test]), &preprocess);
    assert!(none.is_empty() && build(&source.only(&[Split::Test]), &preprocess).is_empty());
    assert_eq!(none.class_names(), source.class_names);
}

#[test]
fn the_same_bad_images_are_left_out_of_larger_images() {
    let workspace = Workspace::new(&PHOTOS);
    truncate(&workspace.photos.path().join("train/daisy/002_grey.jpg"));
    let options = CacheOptions { skip_bad_images: true, ..CacheOptions::default() };
    let all = workspace.build(DType::U8, &options, &Silent).unwrap();
    let train = workspace.source().only(&[Split::Train]);
    let larger = Preprocess::clip(SIDE).enlarged(SIDE + 2).unwrap();
    let folder = workspace.caches.path();
    let cache = Cache::open_or_build(&train, &larger, DType::U8, folder, &options, &Silent).unwrap();
    let (cache, all) = (cache.split(Split::Train), all.split(Split::Train));
    assert_eq!((cache.len(), cache.labels()), (9, all.labels()));
    assert!((0..9).all(|i| cache.path(i) == all.path(i)));
}

#[test]
fn crops_of_a_batch_are_what_the_backend_takes() {
    let workspace = Workspace::new(&PHOTOS);
    let cache = workspace.cache();
    let train = cache.split(Split::Train);
    let indices = [7, 0, 4];
    let images = train.batch(&indices).unwrap();
    let cpu = Cpu::<f32>::new();
    let cut = |augmentation: &Augmentation, side: usize| {
        let crops = augmentation.crops(1, 0, &indices, SIDE, SIDE).unwrap();
        let mut y = Tensor::zeros([3, side, side, 3], DType::U8);
        cpu.crop_resize(&images, &crops, &mut y).unwrap();
        y
    };
    // The whole image, mirrored, at its own size: the columns in reverse.
    let mirror = Augmentation { scale: [1.0, 1.0], ratio: [1.0, 1.0], flip: 1.0 };
    let mirrored = cut(&mirror, SIDE);
    let rows = mirrored.bytes().chunks_exact(SIDE * 3).zip(images.bytes().chunks_exact(SIDE * 3));
    for (found, row) in rows {
        let reversed: Vec<u8> = row.chunks_exact(3).rev().flatten().copied().collect();
        assert_eq!(found, reversed);
    }
    // Boxes of every place and shape are taken too.
    for epoch in 0..50 {
        let crops = Augmentation::default().crops(1, epoch, &indices, SIDE, SIDE).unwrap();
        let mut y = Tensor::zeros([3, 14, 14, 3], DType::U8);
        cpu.crop_resize(&images, &crops, &mut y).unwrap();
    }
}

#[test]
fn a_class_without_an_image_is_named() {
    let workspace = Workspace::new(&["base_420_q95.jpg"]);
    let options = CacheOptions { skip_bad_images: true, ..CacheOptions::default() };
    let cache = workspace.build(DType::U8, &options, &Silent).unwrap();
    cache.split(Split::Train).require_every_class().unwrap();
    cache.split(Split::Val).require_every_class().unwrap();
    // The only training photo of a class is left out.
    for class in ["daisy", "rose"] {
        let place = format!("train/{class}/000_base_420_q95.jpg");
        truncate(&workspace.photos.path().join(&place));
        let cache = workspace.build(DType::U8, &options, &Silent).unwrap();
        let message = cache.split(Split::Train).require_every_class().unwrap_err().to_string();
        assert!(message.contains(&format!("{class:?}")) && message.contains("train split"), "{message}");
        cache.split(Split::Val).require_every_class().unwrap();
        workspace.add(&place, "base_420_q95.jpg");
    }
    assert!(matches!(
        cache.split(Split::Test).require_every_class(),
        Err(DataError::NoImageOfClass { class, split: Split::Test }) if class == "daisy"
    ));
}

#[test]
fn a_class_may_be_missing_from_val_and_test_where_the_split_is_by_seed() {
    let (photos, caches) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (class, count) in [("aster", 3), ("daisy", 1), ("rose", 2)] {
        std::fs::create_dir(photos.path().join(class)).unwrap();
        for i in 0..count {
            std::fs::copy(photo("rgb.png"), photos.path().join(class).join(format!("{i}.png"))).unwrap();
        }
    }
    let source = Dataset::open(photos.path(), 1).unwrap();
    let (preprocess, options) = (Preprocess::clip(SIDE), CacheOptions::default());
    let cache =
        Cache::open_or_build(&source, &preprocess, DType::U8, caches.path(), &options, &Silent).unwrap();
    let labels = Split::ALL.map(|split| cache.split(split).labels());
    assert_eq!(labels, [&[0, 1, 2][..], &[0, 2], &[0]]);
    assert_eq!(cache.class_names().len(), 3);
    cache.split(Split::Train).require_every_class().unwrap();
    let missing = |split| cache.split(split).require_every_class().unwrap_err().to_string();
    assert!(missing(Split::Val).contains("\"daisy\"") && missing(Split::Test).contains("\"daisy\""));
}

#[test]
fn generated_images_are_read_like_photos() {
    let preprocess = Preprocess::clip(4);
    let image = |fill: u8, label, split| MemoryImage {
        pixels: vec![fill; 48],
        label,
        name: format!("g{fill}"),
        split,
    };
    let names = || vec!["round".to_owned(), "pointed".to_owned()];
    let images = [
        image(1, 1, Split::Test),
        image(2, 0, Split::Train),
        image(3, 1, Split::Train),
        image(4, 0, Split::Val),
    ];
    let cache = Cache::from_images(names(), &preprocess, images).unwrap();
    let train = cache.split(Split::Train);
    assert_eq!((train.labels(), train.path(1).unwrap()), (&[0, 1][..], PathBuf::from("g3")));
    assert_eq!(cache.split(Split::Test).image(0).unwrap().bytes(), [1; 48]);
    let batch = train.batch(&[1, 0]).unwrap();
    assert_eq!((batch.bytes()[0], batch.bytes()[48]), (3, 2));
    assert!(cache.path().is_none());
    assert!(Cache::from_images(names(), &preprocess, [image(1, 2, Split::Val)]).is_err());
    let small = MemoryImage { pixels: vec![0; 47], label: 0, name: "small".to_owned(), split: Split::Val };
    assert!(Cache::from_images(names(), &preprocess, [small]).unwrap_err().to_string().contains("small"));
}

#[cfg(target_os = "linux")]
#[test]
#[cfg_attr(not(bash), ignore = "needs bash")]
fn a_cache_that_does_not_fit_is_refused_before_decoding() {
    // A limit on the size of files stands in for a full disk; it needs a process of its own.
    if std::env::var_os("CACHE_TEST_CHILD").is_none() {
        let exe = std::env::current_exe().unwrap();
        let script = format!(
            "trap '' XFSZ; ulimit -f 8; CACHE_TEST_CHILD=1 exec {exe:?} --exact --include-ignored \
             cache::a_cache_that_does_not_fit_is_refused_before_decoding"
        );
        let output = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
        let out = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && out.contains("1 passed"), "{out}");
        return;
    }
    let workspace = Workspace::new(&PHOTOS);
    let monitor = Recorder::new(u64::MAX);
    let error = workspace.build(DType::U8, &CacheOptions::default(), &monitor).unwrap_err();
    assert!(matches!(error, DataError::DiskFull { .. }), "{error}");
    assert_eq!(monitor.done.load(Ordering::SeqCst), 0);
    assert_eq!(workspace.files(), Vec::<PathBuf>::new());
}
