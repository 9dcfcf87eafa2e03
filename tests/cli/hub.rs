//! Models by their hub id: a hub of the test's own, its redirections and refusals, the cache, and whole runs
//! with and without a network.

use crate::command::{Done, command, demo_model, fail_of, json, metrics, model_copy, succeed_of};
use crate::server::{Asked, Reply, Server};
use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a repository of the hub is like.
#[derive(Clone, Default)]
struct Repository {
    id: &'static str,
    revision: &'static str,
    files: BTreeMap<String, Vec<u8>>,
    /// Without it the answer is this status.
    token: Option<(&'static str, u16)>,
    /// Bytes after which the transfer of weights breaks off, so many times.
    breaks: Option<(usize, usize)>,
    /// Weights arrive with a bit turned.
    damaged: bool,
    /// The commit that the revision stands for by now, if it is another.
    moved: Option<&'static str>,
    /// A token that is refused although everybody may read.
    stale: Option<&'static str>,
    /// A mirror that holds all files itself and has etags of its own, as long as the hub's.
    mirror: bool,
    /// The list of files has their names only.
    terse: bool,
}

impl Repository {
    /// The demo's model, with or without some of its files.
    fn demo() -> Self {
        let names = ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"];
        let read = |name: &str| (name.to_owned(), std::fs::read(demo_model().join(name)).unwrap());
        let files = names.map(read).into_iter().chain([("README.md".to_owned(), b"A model.".to_vec())]);
        Repository { id: "demo/clip", revision: "main", files: files.collect(), ..Repository::default() }
    }

    fn without(mut self, name: &str) -> Self {
        self.files.remove(name).unwrap();
        self
    }

    fn with(mut self, name: &str, bytes: &[u8]) -> Self {
        self.files.insert(name.into(), bytes.to_vec());
        self
    }

    /// Weights in two shards.
    fn sharded(self) -> Self {
        let weights = self.files["model.safetensors"].clone();
        let tensors = safetensors::SafeTensors::deserialize(&weights).unwrap();
        let (mut map, mut shards) = (BTreeMap::new(), [Vec::new(), Vec::new()]);
        for (i, (name, view)) in tensors.tensors().into_iter().enumerate() {
            map.insert(name.clone(), shard_name(i % 2));
            shards[i % 2].push((name, view));
        }
        let mut sharded = self.without("model.safetensors");
        for (i, tensors) in shards.into_iter().enumerate() {
            sharded = sharded.with(&shard_name(i), &safetensors::serialize(tensors, None).unwrap());
        }
        let index = json!({ "weight_map": map }).to_string();
        sharded.with("model.safetensors.index.json", index.as_bytes())
    }

    fn refusal(&self, asked: &Asked) -> Option<Reply> {
        let gives = |token| asked.header("authorization") == Some(&format!("Bearer {token}"));
        if self.stale.is_some_and(gives) {
            return Some(Reply::status(401));
        }
        let (token, status) = self.token?;
        (!gives(token)).then(|| Reply::status(status))
    }

    /// The commit whose files are asked for.
    fn listed(&self, asked: &Asked) -> Option<&'static str> {
        let place = format!("/api/models/{}/revision/", self.id);
        match asked.path.strip_prefix(&place)?.strip_suffix("?blobs=true")? {
            COMMIT => Some(COMMIT),
            revision if revision == self.revision.replace('/', "%2F") => Some(self.moved.unwrap_or(COMMIT)),
            _ => None,
        }
    }

    /// What the list of files says of one.
    fn entry(&self, name: &str, bytes: &[u8]) -> serde_json::Value {
        if self.terse {
            return json!({ "rfilename": name });
        }
        let size = bytes.len();
        let mut entry = json!({ "rfilename": name, "size": size, "blobId": git_blob(bytes) });
        if name.ends_with(".safetensors") {
            entry["blobId"] = git_blob(b"a pointer").into();
            entry["lfs"] = json!({ "sha256": hex(Sha256::digest(bytes)), "size": size, "pointerSize": 134 });
        }
        entry
    }

    fn mirrored(&self, name: &str, bytes: &[u8], asked: &Asked) -> Reply {
        let own = if name.ends_with(".safetensors") {
            hex(Sha256::digest(name))
        } else {
            git_blob(name.as_bytes())
        };
        Reply::file(&self.arriving(name, bytes), &format!("\"{own}\""), asked)
    }

    fn arriving(&self, name: &str, bytes: &[u8]) -> Vec<u8> {
        let (mut bytes, middle) = (bytes.to_vec(), bytes.len() / 2);
        if self.damaged && name.ends_with(".safetensors") {
            bytes[middle] ^= 1;
        }
        bytes
    }

    /// The hub's answer; weights are elsewhere, as those of the real one are.
    fn answer(&self, asked: &Asked, storage: &str) -> Reply {
        if let Some(refusal) = self.refusal(asked) {
            return refusal;
        }
        if let Some(commit) = self.listed(asked) {
            let siblings: Vec<_> = self.files.iter().map(|(name, bytes)| self.entry(name, bytes)).collect();
            return Reply::whole(json!({ "sha": commit, "siblings": siblings }).to_string().as_bytes());
        }
        let name = asked.path.strip_prefix(&format!("/{}/resolve/{COMMIT}/", self.id));
        let Some((name, bytes)) = name.and_then(|name| self.files.get_key_value(name)) else {
            return Reply::status(404).with("X-Error-Code", "EntryNotFound");
        };
        if self.mirror {
            return self.mirrored(name, bytes, asked);
        }
        if name.ends_with(".safetensors") {
            let etag = format!("\"{}\"", hex(Sha256::digest(bytes)));
            return Reply::redirect(&format!("{storage}/{name}?signature=x"))
                .with("X-Repo-Commit", COMMIT)
                .with("X-Linked-Etag", &etag)
                .with("X-Linked-Size", &bytes.len().to_string());
        }
        Reply::file(bytes, &format!("\"{}\"", git_blob(bytes)), asked).with("X-Repo-Commit", COMMIT)
    }

    /// The answer of the server that has the weights.
    fn stored(&self, asked: &Asked) -> Reply {
        let name = asked.path.trim_start_matches('/').split('?').next().unwrap();
        let bytes = self.arriving(name, &self.files[name]);
        let cut = self.breaks.filter(|(_, times)| asked.number < *times).map(|(bytes, _)| bytes);
        Reply { cut, ..Reply::file(&bytes, "\"storage's own\"", asked) }
    }
}

fn shard_name(index: usize) -> String {
    format!("model-0000{}-of-00002.safetensors", index + 1)
}

fn git_blob(bytes: &[u8]) -> String {
    hex(Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A hub with one repository, and a machine that knows it.
struct World {
    hub: Server,
    storage: Server,
    machine: Machine,
}

/// Folders, and photos of two classes.
struct Machine {
    dir: TempDir,
    data: String,
    endpoint: String,
}

impl Machine {
    fn new(endpoint: String) -> Machine {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("photos");
        let mut shade = 0;
        for split in ["train", "val", "test"] {
            for (class, channel) in [("red", 0), ("blue", 2)] {
                let folder = root.join(split).join(class);
                std::fs::create_dir_all(&folder).unwrap();
                for i in 0..2 {
                    shade += 15;
                    let mut pixel = [shade, shade, shade];
                    pixel[channel] = 255;
                    let image = image::RgbImage::from_pixel(40, 40, image::Rgb(pixel));
                    image.save(folder.join(format!("{i}.png"))).unwrap();
                }
            }
        }
        Machine { data: root.display().to_string(), dir, endpoint }
    }

    /// The engine on this machine, with nothing of the tests' own surroundings.
    fn engine(&self, args: &[&str]) -> Command {
        let mut command = command(args, self.dir.path());
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("HF_") || text.starts_with("HUGGING") || text.starts_with("TRANSFORMERS_") {
                command.env_remove(name);
            }
        }
        command.env("HF_HOME", self.home()).env("HF_ENDPOINT", &self.endpoint);
        // A proxy of the machine's knows nothing of the tests' servers.
        command.env("NO_PROXY", "127.0.0.1");
        command
    }

    /// A run of one epoch.
    fn train(&self, model: &str, run: &str) -> Command {
        let sizes = ["--epochs", "1", "--batch-size", "3", "--rank", "2", "--early-stop", "off"];
        let names = ["train", "--data", &self.data, "--model", model, "--output", run];
        self.engine(&[&names[..], &sizes].concat())
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("huggingface")
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

impl World {
    fn new(repository: Repository) -> World {
        let other = repository.clone();
        let storage = Server::start(move |asked| other.stored(asked));
        let there = storage.url("");
        let hub = Server::start(move |asked| repository.answer(asked, &there));
        let machine = Machine::new(hub.url("/"));
        World { hub, storage, machine }
    }

    fn prep(&self, model: &str) -> Command {
        self.machine.engine(&["prep", "--data", &self.machine.data, "--model", model])
    }

    fn repository(&self) -> PathBuf {
        self.machine.home().join("hub/models--demo--clip")
    }

    fn snapshot(&self) -> PathBuf {
        self.repository().join("snapshots").join(COMMIT)
    }

    fn forget(&self) {
        self.hub.forget();
        self.storage.forget();
    }

    fn requests(&self) -> usize {
        self.hub.asked().len() + self.storage.asked().len()
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_model_comes_into_the_hub_s_own_cache_once() {
    let world = World::new(Repository::demo());
    succeed_of(&mut world.prep("demo/clip"));
    let needed = ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"];
    let snapshot = world.repository().join("snapshots").join(COMMIT);
    assert_eq!(names(&snapshot), needed);
    assert_eq!(names(&world.repository()), [".no_exist", "blobs", "refs", "snapshots"]);
    assert_eq!(std::fs::read_to_string(world.repository().join("refs/main")).unwrap(), COMMIT);
    assert_eq!(names(&world.repository().join("blobs")).len(), 4);
    for name in needed {
        let bytes = std::fs::read(demo_model().join(name)).unwrap();
        let link = std::fs::read_link(snapshot.join(name)).unwrap();
        assert!(link.starts_with("../../blobs"), "{link:?}");
        assert_eq!(std::fs::read(snapshot.join(name)).unwrap(), bytes);
        if name == "model.safetensors" {
            assert_eq!(link, Path::new("../../blobs").join(hex(Sha256::digest(&bytes))));
        }
    }
    assert!(!world.hub.paths().iter().any(|path| path.contains("README")));
    assert_eq!(world.storage.paths(), ["GET /model.safetensors?signature=x"]);

    world.forget();
    succeed_of(&mut world.prep("demo/clip"));
    succeed_of(&mut world.prep(&format!("demo/clip@{COMMIT}")));
    assert_eq!(world.requests(), 0);
}

#[test]
fn a_revision_is_the_one_that_is_asked_for() {
    let repository = Repository { revision: "refs/pr/15", ..Repository::demo() };
    let world = World::new(repository);
    fail_of(&mut world.prep("demo/clip"), 1, &["demo/clip", "revision main", "404", &world.hub.url("")]);
    succeed_of(&mut world.prep("demo/clip@refs/pr/15"));
    assert_eq!(std::fs::read_to_string(world.repository().join("refs/refs/pr/15")).unwrap(), COMMIT);

    // The model whose weights are not on its main branch.
    let repository =
        Repository { id: "openai/clip-vit-base-patch32", revision: "refs/pr/15", ..Repository::demo() };
    let world = World::new(repository);
    succeed_of(&mut world.prep("openai/clip-vit-base-patch32"));
    assert_eq!(
        world.hub.paths()[0],
        "GET /api/models/openai/clip-vit-base-patch32/revision/refs%2Fpr%2F15?blobs=true"
    );
}

#[test]
fn a_transfer_that_breaks_is_resumed_and_a_damaged_one_refused() {
    let world = World::new(Repository { breaks: Some((50_000, 2)), ..Repository::demo() });
    succeed_of(&mut world.prep("demo/clip"));
    let ranges: Vec<_> = world.storage.asked().iter().map(|asked| asked.range().map(str::to_owned)).collect();
    assert_eq!(ranges, [None, Some("bytes=50000-".into()), Some("bytes=100000-".into())]);

    let world = World::new(Repository { damaged: true, ..Repository::demo() });
    fail_of(&mut world.prep("demo/clip"), 1, &["model.safetensors", "checksum"]);
    let kept = names(&world.repository().join("blobs"));
    assert_eq!(kept.len(), 3, "{kept:?}");
    assert!(!world.repository().join("snapshots").join(COMMIT).join("model.safetensors").exists());
}

#[test]
fn shards_are_fetched_by_their_index() {
    let world = World::new(Repository::demo().sharded());
    succeed_of(&mut world.prep("demo/clip"));
    let snapshot = world.repository().join("snapshots").join(COMMIT);
    assert!((0..2).all(|i| snapshot.join(shard_name(i)).is_file()));
    // A snapshot that lacks one is not complete.
    std::fs::remove_file(snapshot.join(shard_name(1))).unwrap();
    let mut offline = world.prep("demo/clip");
    fail_of(offline.env("HF_HUB_OFFLINE", "1"), 1, &["demo/clip", "HF_HUB_OFFLINE", "model.safetensors"]);
    world.forget();
    succeed_of(&mut world.prep("demo/clip"));
    // Its bytes are in the cache still.
    assert_eq!(world.storage.paths(), [""; 0]);

    let index = json!({ "weight_map": { "logit_scale": "../../evil.safetensors" } }).to_string();
    let world =
        World::new(Repository::demo().sharded().with("model.safetensors.index.json", index.as_bytes()));
    fail_of(&mut world.prep("demo/clip"), 1, &["demo/clip", "model.safetensors.index.json"]);
    assert_eq!(world.storage.paths(), [""; 0]);
}

#[test]
fn what_a_repository_lacks_is_said() {
    let pickled = Repository::demo().without("model.safetensors").with("pytorch_model.bin", b"pickle");
    let world = World::new(pickled);
    let parts = ["demo/clip", "pytorch_model.bin", "save_pretrained", "@refs/pr/N"];
    fail_of(&mut world.prep("demo/clip"), 1, &parts);
    assert_eq!(world.hub.paths().len(), 1, "nothing is fetched of it");

    for (name, missing) in [
        ("config.json", "config.json"),
        ("model.safetensors", "model.safetensors"),
        ("tokenizer.json", "vocab.json and merges.txt"),
    ] {
        let world = World::new(Repository::demo().without(name));
        fail_of(&mut world.prep("demo/clip"), 1, &["demo/clip", "has no", missing]);
    }
    let world = World::new(Repository::demo());
    fail_of(&mut world.prep("demo/nothing"), 1, &["demo/nothing", "neither a folder here", "404"]);
}

#[test]
fn without_a_preprocessor_clip_s_own_is_meant_and_it_is_remembered() {
    let world = World::new(Repository::demo().without("preprocessor_config.json"));
    let warned = |done: Done| {
        let lines: Vec<_> = done.err.lines().filter(|line| line.starts_with("warning: ")).collect();
        assert!(lines.len() == 1 && lines[0].contains("neither processor_config.json"), "{}", done.err);
    };
    warned(succeed_of(&mut world.prep("demo/clip")));
    let absent = [
        "added_tokens.json",
        "merges.txt",
        "preprocessor_config.json",
        "processor_config.json",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "vocab.json",
    ];
    assert_eq!(names(&world.repository().join(".no_exist").join(COMMIT)), absent);
    world.forget();
    warned(succeed_of(&mut world.prep("demo/clip")));
    assert_eq!(world.requests(), 0);
}

#[test]
fn an_export_has_all_that_the_hub_has_of_tokenizer_and_image_processor() {
    // As transformers 5 writes the settings of images: into this file and no other.
    let images = std::fs::read_to_string(demo_model().join("preprocessor_config.json")).unwrap();
    let nested = format!(r#"{{"image_processor": {images}, "processor_class": "CLIPProcessor"}}"#);
    let world = World::new(
        Repository::demo()
            .without("preprocessor_config.json")
            .with("processor_config.json", nested.as_bytes())
            .with("tokenizer_config.json", br#"{"model_max_length": 77}"#)
            .with("special_tokens_map.json", br#"{"pad_token": "!"}"#)
            .with("added_tokens.json", b"{}")
            .with("vocab.json", br#"{"!": 0}"#)
            .with("merges.txt", b"#version: 0.2\n"),
    );
    let (run, to) = (world.machine.at("run"), world.machine.at("merged"));
    let done = succeed_of(&mut world.machine.train("demo/clip", &run));
    let mut warnings = done.err.lines().filter(|line| line.starts_with("warning: "));
    assert!(warnings.all(|line| line.contains("few photos to measure by")), "{}", done.err);
    assert!(!world.repository().join(".no_exist").join(COMMIT).join("processor_config.json").exists());
    succeed_of(&mut world.machine.engine(&["export", "--run", &run, "--merged", &to]));
    for name in [
        "added_tokens.json",
        "merges.txt",
        "processor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ] {
        let exported = std::fs::read(Path::new(&to).join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(exported, std::fs::read(world.snapshot().join(name)).unwrap(), "{name}");
    }
    // For releases that do not know the nested settings.
    assert!(Path::new(&to).join("preprocessor_config.json").is_file());
    // The export is a model and is replaced as one.
    succeed_of(&mut world.machine.engine(&["export", "--run", &run, "--merged", &to, "--overwrite"]));
}

/// Python may have loaded weights and tokenizer only; the branch may have moved on since.
#[test]
fn what_another_tool_left_out_is_asked_for_alone_and_can_be_done_without() {
    let repository = Repository::demo().with("tokenizer_config.json", b"{}");
    let world = World::new(repository.clone());
    succeed_of(&mut world.prep("demo/clip"));
    let World { hub, storage, machine } = world;
    drop((hub, storage));
    let moved = "fedcba9876543210fedcba9876543210fedcba98";
    let later = World::new(Repository { moved: Some(moved), ..repository });
    let world = World { machine: Machine { endpoint: later.machine.endpoint.clone(), ..machine }, ..later };
    let forget = || {
        for name in ["preprocessor_config.json", "tokenizer_config.json"] {
            std::fs::remove_file(world.snapshot().join(name)).unwrap();
        }
        std::fs::remove_dir_all(world.repository().join("blobs")).unwrap();
        std::fs::create_dir(world.repository().join("blobs")).unwrap();
    };
    // The weights and the rest stay, whatever becomes of blobs/.
    for name in names(&world.snapshot()) {
        let path = world.snapshot().join(name);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    forget();
    let done = succeed_of(&mut world.prep("demo/clip"));
    assert!(!done.err.contains("warning: "), "{}", done.err);
    let at = |name: &str| format!("/demo/clip/resolve/{COMMIT}/{name}");
    let mut expected = vec![format!("GET /api/models/demo/clip/revision/{COMMIT}?blobs=true")];
    for name in ["tokenizer_config.json", "preprocessor_config.json"] {
        expected.extend([format!("HEAD {}", at(name)), format!("GET {}", at(name))]);
    }
    assert_eq!(world.hub.paths(), expected);
    assert_eq!(names(&world.repository().join("snapshots")), [COMMIT]);

    // No answer, and no place to write: both are said, and neither is in the way.
    forget();
    let told = |command: &mut Command, cause: &str| {
        let done = succeed_of(command);
        let lines: Vec<_> = done.err.lines().filter(|line| line.starts_with("warning: ")).collect();
        let which = "without tokenizer_config.json, preprocessor_config.json, which";
        assert!(lines[0].contains(which) && lines[0].contains(cause), "{}", done.err);
        assert!(lines.len() == 2 && lines[1].contains("neither processor_config.json"), "{}", done.err);
        assert!(!done.err.contains("trying again"), "{}", done.err);
    };
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    told(world.prep("demo/clip").env("HF_ENDPOINT", format!("http://{nobody}")), &nobody.to_string());
    let locks = world.machine.home().join("hub/.locks");
    std::fs::remove_dir_all(&locks).unwrap();
    std::fs::write(&locks, "").unwrap();
    told(&mut world.prep("demo/clip"), &locks.display().to_string());
}

#[test]
fn without_links_the_snapshot_has_the_files() {
    let world = World::new(Repository::demo());
    succeed_of(world.prep("demo/clip").env("HF_HUB_DISABLE_SYMLINKS", "1"));
    assert_eq!(names(&world.repository().join("blobs")), [""; 0]);
    for name in names(&world.snapshot()) {
        assert!(!world.snapshot().join(name).is_symlink());
    }
    world.forget();
    succeed_of(&mut world.prep("demo/clip"));
    assert_eq!(world.requests(), 0);
}

#[test]
fn a_dry_run_fetches_and_writes_nothing_else() {
    let world = World::new(Repository::demo());
    let run = world.machine.at("run");
    succeed_of(world.machine.train("demo/clip", &run).arg("--dry-run"));
    assert!(world.snapshot().join("model.safetensors").is_file());
    assert_eq!(names(world.machine.dir.path()), ["huggingface", "photos"]);
}

#[test]
fn a_mirror_s_own_etag_is_no_checksum() {
    let mirror = Repository { mirror: true, ..Repository::demo() };
    // The list says what is right.
    let world = World::new(mirror.clone());
    let done = succeed_of(&mut world.prep("demo/clip"));
    assert!(!done.err.contains("checksum"), "{}", done.err);
    fail_of(
        &mut World::new(Repository { damaged: true, ..mirror.clone() }).prep("demo/clip"),
        1,
        &["checksum"],
    );
    // Nobody does.
    let world = World::new(Repository { terse: true, ..mirror });
    let done = succeed_of(&mut world.prep("demo/clip"));
    for name in names(&world.snapshot()) {
        assert!(done.err.contains(&format!("{name}: the hub names no checksum")), "{}", done.err);
    }
    // The hub does where it sends on to another server.
    let damaged = World::new(Repository { terse: true, damaged: true, ..Repository::demo() });
    fail_of(&mut damaged.prep("demo/clip"), 1, &["model.safetensors", "checksum"]);
}

#[test]
fn the_older_tokenizer_files_do_too() {
    let repository = Repository::demo().without("tokenizer.json");
    let world = World::new(repository.with("vocab.json", b"{}").with("merges.txt", b""));
    succeed_of(&mut world.prep("demo/clip"));
    let snapshot = world.repository().join("snapshots").join(COMMIT);
    assert!(snapshot.join("vocab.json").is_file() && snapshot.join("merges.txt").is_file());
}

#[test]
fn a_token_is_asked_for_and_told_to_the_hub_only() {
    for status in [401, 403] {
        let world = World::new(Repository { token: Some(("secret", status)), ..Repository::demo() });
        let refused = ["demo/clip", "HF_TOKEN", &status.to_string(), &world.hub.url("/demo/clip")];
        let done = fail_of(&mut world.prep("demo/clip"), 1, &refused);
        assert!(done.err.contains("without a token ("), "{}", done.err);
        let done = fail_of(world.prep("demo/clip").env("HF_TOKEN", "wrong"), 1, &refused);
        assert!(done.err.contains("with the token in HF_TOKEN"), "{}", done.err);
        let mut none = world.prep("demo/clip");
        let none = none.env("HF_TOKEN", "secret").env("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1");
        fail_of(none, 1, &["without a token, as HF_HUB_DISABLE_IMPLICIT_TOKEN is set"]);
        world.forget();
        succeed_of(world.prep("demo/clip").env("HF_TOKEN", "secret\n"));
        assert!(world.storage.asked().iter().all(|asked| asked.header("authorization").is_none()));
        assert_eq!(world.storage.asked().len(), 1);
    }
    // One that has run out, of a model that everybody may read.
    let world = World::new(Repository { stale: Some("old"), ..Repository::demo() });
    let stale = ["to everybody", "(401)", "HF_HUB_DISABLE_IMPLICIT_TOKEN=1"];
    let done = fail_of(world.prep("demo/clip").env("HF_TOKEN", "old"), 1, &stale);
    assert!(done.err.contains("the token in HF_TOKEN ") && !done.err.contains("old"), "{}", done.err);
    let file = world.machine.dir.path().join("my token");
    std::fs::write(&file, "old").unwrap();
    let done = fail_of(world.prep("demo/clip").env("HF_TOKEN_PATH", &file), 1, &stale);
    assert!(done.err.contains(&file.display().to_string()), "{}", done.err);
    let mut none = world.prep("demo/clip");
    succeed_of(none.env("HF_TOKEN", "old").env("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"));
    // The file that Hugging Face's own login leaves.
    let world = World::new(Repository { token: Some(("secret", 401)), ..Repository::demo() });
    std::fs::create_dir_all(world.machine.home()).unwrap();
    std::fs::write(world.machine.home().join("token"), "secret\n").unwrap();
    succeed_of(&mut world.prep("demo/clip"));
}

#[test]
fn offline_there_is_no_network_and_what_is_cached_is_used() {
    let world = World::new(Repository::demo());
    for yes in ["1", "true"] {
        let parts = ["demo/clip", "HF_HUB_OFFLINE", "config.json", "main"];
        fail_of(world.prep("demo/clip").env("HF_HUB_OFFLINE", yes), 1, &parts);
    }
    fail_of(world.prep("demo/clip").env("TRANSFORMERS_OFFLINE", "1"), 1, &["TRANSFORMERS_OFFLINE is set"]);
    assert_eq!(world.requests(), 0);
    succeed_of(world.prep("demo/clip").env("HF_HUB_OFFLINE", "0").env("TRANSFORMERS_OFFLINE", "1"));
    world.forget();
    succeed_of(world.prep("demo/clip").env("HF_HUB_OFFLINE", "1"));
    // Another tool may have left no preprocessor: a warning, and CLIP's own.
    let preprocessor = world.repository().join("snapshots").join(COMMIT).join("preprocessor_config.json");
    std::fs::remove_file(preprocessor).unwrap();
    let done: Done = succeed_of(world.prep("demo/clip").env("HF_HUB_OFFLINE", "1"));
    assert!(
        done.err.contains("warning: ") && done.err.contains("nor preprocessor_config.json"),
        "{}",
        done.err
    );
    assert_eq!(world.requests(), 0);
    // With a network it is fetched.
    succeed_of(&mut world.prep("demo/clip"));
    assert!(world.hub.paths().iter().any(|path| path.contains("preprocessor_config.json")));
}

#[test]
fn the_environment_says_where() {
    let world = World::new(Repository::demo());
    let elsewhere = TempDir::new().unwrap();
    succeed_of(world.prep("demo/clip").env("HF_HUB_CACHE", elsewhere.path()));
    assert_eq!(names(elsewhere.path()), [".locks", "models--demo--clip"]);
    assert!(!world.machine.home().exists());
    let (mut home, to) = (world.prep("demo/clip"), world.machine.dir.path().join("7/hub"));
    home.env("HOME", world.machine.dir.path()).env("JOB", "7");
    world.forget();
    succeed_of(home.env("HF_HOME", "~/$JOB"));
    assert_eq!(names(&to), [".locks", "models--demo--clip"]);
    let mut wrong = world.prep("demo/other");
    fail_of(wrong.env("HF_ENDPOINT", "hub.example"), 1, &["HF_ENDPOINT=hub.example", "http"]);
    // Something answers, but it is no hub.
    let page = Server::start(|_| Reply::whole(b"<html>hello</html>"));
    fail_of(wrong.env("HF_ENDPOINT", page.url("")), 1, &["HF_ENDPOINT", &page.url("")]);

    let mut doctor = world.machine.engine(&["doctor"]);
    let out = succeed_of(doctor.env("HF_HUB_CACHE", elsewhere.path())).out;
    let line = out.lines().find(|line| line.contains("hub cache")).unwrap();
    assert!(line.contains(&elsewhere.path().display().to_string()) && line.contains("1 model"), "{line}");
    assert!(
        out.lines().any(|line| line.contains("Flowers-102") && line.contains("not fetched yet")),
        "{out}"
    );
    let mut doctor = world.machine.engine(&["doctor", "--json"]);
    let out = succeed_of(doctor.env("HF_HUB_CACHE", elsewhere.path())).out;
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["caches"]["hub"]["models"], json!(["demo/clip"]));
}

#[test]
fn a_folder_of_the_same_name_wins() {
    let world = World::new(Repository::demo());
    let here = world.machine.dir.path();
    std::fs::create_dir_all(here.join("demo")).unwrap();
    std::fs::rename(model_copy(&here.join("demo")), here.join("demo/clip")).unwrap();
    succeed_of(world.prep("demo/clip").current_dir(here));
    assert_eq!(world.requests(), 0);
}

#[test]
fn data_alone_are_enough() {
    let id = "openai/clip-vit-base-patch32";
    let World { machine, hub, storage } =
        World::new(Repository { id, revision: "refs/pr/15", ..Repository::demo() });
    let here = machine.dir.path().to_path_buf();
    let engine = |args: &[&str]| {
        let mut command = machine.engine(args);
        command.current_dir(&here);
        command
    };
    let sizes = ["--epochs", "1", "--batch-size", "3", "--recipe", "linear"];
    let train = [&["train", "--data", "photos"], &sizes[..]].concat();
    let done = succeed_of(&mut engine(&train));
    for line in ["run: runs/photos\n", &format!("model: {id}, the default; --model names another\n")] {
        assert!(done.err.contains(line), "{line} in\n{}", done.err);
    }
    let run = machine.at("runs/photos");
    let config = std::fs::read_to_string(Path::new(&run).join("config.toml")).unwrap();
    assert!(config.lines().any(|line| line == format!("model = {id:?}")), "{config}");
    // It is there now, and stays unless asked for.
    let ways = ["runs/photos", "not empty", "--resume", "--overwrite", "--output"];
    fail_of(&mut engine(&train), 1, &ways);
    succeed_of(&mut engine(&["train", "--data", "photos", "--resume", "--epochs", "2"]));
    let epochs = metrics(&run).into_iter().filter(|line| line["type"] == "epoch").count();
    assert_eq!(epochs, 2);
    let others = ["train", "--data", "elsewhere", "--resume", "--output", "runs/photos"];
    fail_of(&mut engine(&others), 2, &["--resume: only"]);
    succeed_of(&mut engine(&[&train[..], &["--overwrite"]].concat()));
    // A model that is named, in the file too, is no default.
    let again = ["train", "--config", "runs/photos/config.toml", "--output", "again"];
    let done = succeed_of(&mut engine(&again));
    assert!(!done.err.contains("the default"), "{}", done.err);

    succeed_of(&mut engine(&[&train[..], &["--seeds", "1"]].concat()));
    assert!(here.join("runs/photos-seeds/seeds.json").is_file());
    let compare = ["compare", "--recipes", "linear", "--data", "photos", "--epochs", "1"];
    let done = succeed_of(&mut engine(&compare));
    assert!(
        done.err.contains("runs: runs/photos-compare\n") && done.err.contains("the default"),
        "{}",
        done.err
    );
    assert!(here.join("runs/photos-compare/comparison.json").is_file());
    fail_of(&mut engine(&compare), 1, &["runs/photos-compare", "not empty", "--overwrite", "--out"]);
    for args in [
        &["zero-shot", "--data", "photos"][..],
        &["embed", "--images", "photos", "--out", "features.safetensors"],
    ] {
        let done = succeed_of(&mut engine(args));
        assert!(done.err.contains(&format!("model: {id}, the default")), "{args:?}: {}", done.err);
    }
    // The default is as any other: only its first use needs the hub.
    drop((hub, storage));
    succeed_of(&mut engine(&["zero-shot", "--data", "photos"]));
}

#[test]
fn a_run_keeps_the_id_and_goes_on_without_the_hub() {
    let World { hub, storage, machine } = World::new(Repository::demo());
    let (local, run) = (machine.at("local"), machine.at("run"));
    succeed_of(&mut machine.train(&demo_model().display().to_string(), &local));
    assert_eq!(hub.asked().len() + storage.asked().len(), 0);
    succeed_of(&mut machine.train("demo/clip@main", &run));
    assert_eq!(storage.asked().len(), 1);
    assert_eq!(metrics(&run), metrics(&local));
    let config = std::fs::read_to_string(Path::new(&run).join("config.toml")).unwrap();
    assert!(config.lines().any(|line| line == "model = \"demo/clip@main\""), "{config}");
    assert_eq!(json(&run, "adapter/adapter_config.json")["base_model_name_or_path"], "demo/clip");

    // From here on there is no hub. Some of it happens where a folder has the model's name.
    drop((hub, storage));
    let elsewhere = machine.dir.path().join("elsewhere");
    std::fs::create_dir_all(elsewhere.join("demo/clip@main")).unwrap();
    let (again, config) = (machine.at("again"), format!("{run}/config.toml"));
    succeed_of(&mut machine.engine(&["train", "--config", &config, "--output", &again]));
    assert_eq!(metrics(&again), metrics(&run));
    succeed_of(machine.engine(&["eval", "--run", &run]).current_dir(&elsewhere));
    let (of_run, of_local) = (machine.at("run.safetensors"), machine.at("local.safetensors"));
    for (run, out) in [(&run, &of_run), (&local, &of_local)] {
        succeed_of(&mut machine.engine(&["embed", "--run", run, "--images", &machine.data, "--out", out]));
    }
    assert_eq!(std::fs::read(of_run).unwrap(), std::fs::read(of_local).unwrap());
    succeed_of(&mut machine.engine(&["zero-shot", "--model", "demo/clip", "--data", &machine.data]));
    let resume = ["train", "--resume", "--output", &run, "--epochs", "2"];
    succeed_of(machine.engine(&resume).current_dir(&elsewhere));
    let epochs = metrics(&run).into_iter().filter(|line| line["type"] == "epoch").count();
    assert_eq!(epochs, 2);
}
