//! Malformed input of every kind: the fuzz targets over their committed corpus, and over a few thousand inputs
//! that a seeded generator makes from it. An input may be refused, but not crash, ask for much memory, or
//! yield anything that is not what it claims to be. docs/fuzzing.md tells of longer runs.

mod fuzz_targets;

use fuzz_targets::{ALL, Target};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

/// Inputs that are made from the corpus, for every target.
const MUTATIONS: usize = 3000;

/// The most that reading one input may hold. The `tiff` crate reserves up to 256 MiB for the values that a tag
/// claims to have, and writes to none of it that the file does not fill; all else takes far less.
const MOST_BYTES: isize = 384 << 20;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Counts the bytes that each thread asked for and did not give back, whether touched or not: the same on
/// every system. The readers work on the thread that calls them.
struct Counting;

fn count(bytes: isize) {
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn adapters() {
    run_target("adapter");
}

#[test]
fn image_caches() {
    run_target("cache");
}

#[test]
fn checkpoints() {
    run_target("checkpoint");
}

#[test]
fn images() {
    run_target("image");
}

#[test]
fn lists() {
    run_target("list");
}

#[test]
fn matlab_files() {
    run_target("mat");
}

#[test]
fn runs() {
    run_target("run");
}

#[test]
fn tokenizers() {
    run_target("tokenizer");
}

#[test]
fn every_target_has_its_seeds_and_its_binary() {
    let names = |folder: &str, extension: &str| {
        let entries = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.map(|name| name.replace(extension, "")).collect();
        names.sort();
        names
    };
    let targets = ALL.map(|(name, _)| name);
    assert_eq!(names("fuzz/corpus", ""), targets);
    assert_eq!(names("fuzz/fuzz_targets", ".rs"), targets);
}

/// Runs a target over its corpus and over mutations of it.
fn run_target(name: &str) {
    let (_, target) = ALL.into_iter().find(|(other, _)| *other == name).unwrap();
    let seeds = corpus(name);
    let accepted =
        seeds.iter().filter(|(path, input)| run(target, input, &path.display().to_string())).count();
    assert!(accepted > 4 && accepted + 4 < seeds.len(), "{accepted} of {} seeds were accepted", seeds.len());
    let mut rng = ChaCha8Rng::seed_from_u64(102);
    for i in 0..MUTATIONS {
        let input = mutation(&seeds, &mut rng);
        run(target, &input, &format!("mutation {i} of {name}"));
    }
}

/// The files of a target's corpus, sorted by name.
fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let entries = std::fs::read_dir(folder).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Whether the target accepted the input. One that fails is written to a file, to be run again.
fn run(target: Target, input: &[u8], what: &str) -> bool {
    PEAK.set(HELD.get());
    let before = HELD.get();
    let result = catch_unwind(|| target(input));
    let most = PEAK.get() - before;
    if result.is_err() || most > MOST_BYTES {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz_input");
        std::fs::write(&path, input).unwrap();
        let problem = if result.is_err() { "a panic" } else { "too much memory" };
        panic!("{what}: {problem}, with {most} bytes held; the input is {}", path.display());
    }
    result.unwrap_or(false)
}

/// One to four changes to a seed.
fn mutation(seeds: &[(PathBuf, Vec<u8>)], rng: &mut impl Rng) -> Vec<u8> {
    let mut input = seeds[rng.random_range(0..seeds.len())].1.clone();
    for _ in 0..rng.random_range(1..=4) {
        if input.is_empty() {
            input.push(rng.random());
        }
        let at = rng.random_range(0..input.len());
        let end = rng.random_range(at..=input.len().min(at + 64));
        match rng.random_range(0..7) {
            0 => input[at] ^= 1 << rng.random_range(0..8),
            1 => input[at] = [0, 1, 0x7f, 0x80, 0xff, b'9', b'"', b'['][rng.random_range(0..8)],
            2 => drop(input.drain(at..end)),
            3 => {
                let part = input[at..end].to_vec();
                input.splice(at..at, part);
            }
            4 => input.truncate(at),
            5 => {
                let value = [0u32, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX][rng.random_range(0..5)];
                let bytes = if rng.random() { value.to_le_bytes() } else { value.to_be_bytes() };
                let end = input.len().min(at + 4);
                input.splice(at..end, bytes);
            }
            _ => {
                let other = &seeds[rng.random_range(0..seeds.len())].1;
                let from = rng.random_range(0..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
    input
}
