//! Models by their hub id, in the cache that Hugging Face's own tools use.
//!
//! The `hf-hub` crate names folders and addresses here. The transfer is [`http`](super::http)'s: the crate's
//! own waits for a silent server for ever, repeats no question, appends a whole file to the part of one where
//! a server knows no ranges, checks nothing, and tells the token to the host that large files are redirected
//! to. It also has no word for HF_TOKEN, HF_HUB_CACHE and HF_HUB_OFFLINE.

use super::http::{Http, Limits, Wanted};
use super::lock::Lock;
use super::sum::Sum;
use super::{FetchError, Result};
use crate::progress::Monitor;
use crate::train::files::write_atomic;
use hf_hub::api::RepoInfo;
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use ureq::http::HeaderMap;

const ENDPOINT: &str = "https://huggingface.co";

/// Models whose main branch has pickled weights only, and the revision of theirs that has safetensors.
const REVISIONS: [(&str, &str); 1] = [("openai/clip-vit-base-patch32", "refs/pr/15")];

const CONFIG: &str = "config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_PARTS: [&str; 2] = ["vocab.json", "merges.txt"];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const PICKLED: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/// There is no such file: `refs/a` may be a folder, for the revision `a/b`, or no folder.
const MISSING: [ErrorKind; 3] = [ErrorKind::NotFound, ErrorKind::NotADirectory, ErrorKind::IsADirectory];

/// Configurations, lists of files and tokenizers are much smaller.
const SMALL: u64 = 64 << 20;

/// Weights of the largest CLIP models have some 10 GB.
const LARGE: u64 = 64 << 30;

/// `owner/name`, and the revision if one is asked for: `owner/name@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `owner/name`.
    pub repository: String,
    /// A branch, tag, commit or reference such as `refs/pr/15`; None where the id names none.
    pub revision: Option<String>,
}

impl HubId {
    /// Reads an id; None for what can only be a path.
    pub fn parse(text: &str) -> Option<HubId> {
        let (repository, revision) = match text.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (text, None),
        };
        let (owner, name) = repository.split_once('/')?;
        let revision_is_plain = revision.is_none_or(|revision| revision.split('/').all(is_plain));
        let plain = is_plain(owner) && is_plain(name) && revision_is_plain;
        // `--` stands for the slash in the cache's folder names.
        let plain = plain && !repository.contains("--") && repository.len() <= 96;
        plain.then(|| HubId { repository: repository.to_owned(), revision: revision.map(str::to_owned) })
    }

    /// The revision that is meant.
    pub fn revision(&self) -> &str {
        let known = REVISIONS.iter().find(|(repository, _)| *repository == self.repository);
        match (&self.revision, known) {
            (Some(revision), _) => revision,
            (None, Some((_, revision))) => revision,
            (None, None) => "main",
        }
    }
}

/// A part of an id that is no more than a name, in a path or an address.
fn is_plain(part: &str) -> bool {
    let known = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    known && part.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.repository),
            None => f.write_str(&self.repository),
        }
    }
}

/// A hub and the cache of what came from it.
#[derive(Debug, Clone)]
pub struct Hub {
    endpoint: String,
    cache: Cache,
    http: Http,
    offline: bool,
}

impl Hub {
    /// As the environment says: HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE.
    pub fn from_env() -> Result<Self> {
        let path = |name: &str| variable(name).map(PathBuf::from);
        let base = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
        let home = path("HF_HOME").or_else(|| base.map(|base| base.join("huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| home.as_ref().map(|home| home.join("hub")));
        let text = |name: &str| variable(name).map(|value| value.to_string_lossy().trim().to_owned());
        let endpoint = match text("HF_ENDPOINT") {
            Some(value) if !value.starts_with("http://") && !value.starts_with("https://") => {
                let problem = "not an http or https address; correct or unset it";
                return Err(FetchError::Variable { name: "HF_ENDPOINT", value, problem });
            }
            Some(value) => value.trim_end_matches('/').to_owned(),
            None => ENDPOINT.to_owned(),
        };
        let token_file = path("HF_TOKEN_PATH").or_else(|| home.map(|home| home.join("token")));
        let stored = || std::fs::read_to_string(token_file?).ok().map(|token| token.trim().to_owned());
        let token = text("HF_TOKEN").or_else(stored).filter(|token| !token.is_empty());
        let http = Http::new(Limits::default());
        let http = match token {
            Some(token) => http.with_token(&endpoint, token)?,
            None => http,
        };
        let yes = ["1", "ON", "YES", "TRUE"];
        let offline =
            text("HF_HUB_OFFLINE").is_some_and(|value| yes.contains(&value.to_uppercase().as_str()));
        let cache = Cache::new(cache.ok_or(FetchError::NoHubCache)?);
        Ok(Hub { endpoint, cache, http, offline })
    }

    /// The hub's address, without a slash at its end: HF_ENDPOINT, or Hugging Face's own.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The folder of the cache.
    pub fn cache(&self) -> &Path {
        self.cache.path()
    }

    /// The models in the cache, whole or not, by their names.
    pub fn models(&self) -> Vec<String> {
        let folders = std::fs::read_dir(self.cache()).into_iter().flatten().filter_map(|entry| entry.ok());
        let names = folders.filter_map(|folder| folder.file_name().into_string().ok());
        let mut models: Vec<String> =
            names.filter_map(|name| Some(name.strip_prefix("models--")?.replace("--", "/"))).collect();
        models.sort();
        models
    }

    /// Whether HF_HUB_OFFLINE forbids to ask the hub: the cache must do.
    pub fn is_offline(&self) -> bool {
        self.offline
    }

    /// The folder with the files of a CLIP checkpoint. A snapshot that is complete in the cache is used as it
    /// is; otherwise what is missing is fetched.
    pub fn snapshot(&self, id: &HubId, monitor: &dyn Monitor) -> Result<PathBuf> {
        let model = HubModel::of(self, id);
        let cached = model.cached_snapshot()?;
        if let Some(folder) = &cached
            && missing(folder).is_none()
            && (folder.join(PREPROCESSOR).is_file() || model.has_none(folder, PREPROCESSOR))
        {
            return Ok(folder.clone());
        }
        if !self.offline {
            return model.fetch(monitor);
        }
        let folder = cached.unwrap_or_else(|| model.path.join("snapshots"));
        match missing(&folder) {
            Some(missing) => Err(FetchError::Offline {
                id: id.to_string(),
                revision: id.revision().to_owned(),
                missing: missing.to_owned(),
                cache: self.cache().to_path_buf(),
            }),
            None => {
                let name = folder.display();
                monitor.line(&format!("{name}: no {PREPROCESSOR} in the cache; pixels as CLIP's own"));
                Ok(folder)
            }
        }
    }
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// What a snapshot lacks, if anything, of what a CLIP checkpoint cannot do without.
fn missing(folder: &Path) -> Option<&'static str> {
    let has = |name: &str| folder.join(name).is_file();
    if !has(CONFIG) {
        return Some(CONFIG);
    }
    if !has(TOKENIZER) && !TOKENIZER_PARTS.iter().all(|part| has(part)) {
        return Some(TOKENIZER);
    }
    let shards = || std::fs::read(folder.join(INDEX)).ok().and_then(|index| shards(&index));
    let whole = has(WEIGHTS) || shards().is_some_and(|shards| shards.iter().all(|shard| has(shard)));
    (!whole).then_some(WEIGHTS)
}

/// The files that an index of a sharded checkpoint lists; None where it is none, or leads elsewhere.
fn shards(index: &[u8]) -> Option<BTreeSet<String>> {
    let index: serde_json::Value = serde_json::from_slice(index).ok()?;
    let files = index.get("weight_map")?.as_object()?.values().map(|file| file.as_str().map(str::to_owned));
    let files: BTreeSet<String> = files.collect::<Option<_>>()?;
    (!files.is_empty() && files.iter().all(|file| is_plain(file))).then_some(files)
}

/// One repository at one revision.
struct HubModel<'a> {
    hub: &'a Hub,
    id: &'a HubId,
    /// Its folder in the cache: blobs/, snapshots/COMMIT/, refs/REVISION.
    path: PathBuf,
    cached: CacheRepo,
}

impl<'a> HubModel<'a> {
    fn of(hub: &'a Hub, id: &'a HubId) -> Self {
        let repo = Repo::with_revision(id.repository.clone(), RepoType::Model, id.revision().to_owned());
        let path = hub.cache.path().join(repo.folder_name());
        HubModel { hub, id, path, cached: hub.cache.repo(repo) }
    }

    fn reference(&self) -> PathBuf {
        self.path.join("refs").join(self.id.revision())
    }

    /// The folder of the commit that the cache knows the revision by.
    fn cached_snapshot(&self) -> Result<Option<PathBuf>> {
        let reference = self.reference();
        let commit = match std::fs::read_to_string(&reference) {
            Ok(commit) => commit.trim().to_owned(),
            // A revision may be a commit itself.
            Err(e) if MISSING.contains(&e.kind()) => self.id.revision().to_owned(),
            Err(e) => return Err(FetchError::io(&reference, "read the file")(e)),
        };
        let folder = self.cached.pointer_path(&commit);
        Ok((is_plain(&commit) && folder.is_dir()).then_some(folder))
    }

    /// Where the cache remembers that a commit has no such file, as Hugging Face's own tools do.
    fn absence(&self, snapshot: &Path, name: &str) -> PathBuf {
        self.path.join(".no_exist").join(snapshot.file_name().unwrap_or_default()).join(name)
    }

    fn has_none(&self, snapshot: &Path, name: &str) -> bool {
        self.absence(snapshot, name).is_file()
    }

    /// Fetches what is missing. The weights come last, so that a snapshot that was interrupted lacks them.
    fn fetch(&self, monitor: &dyn Monitor) -> Result<PathBuf> {
        let lock = self.hub.cache().join(".locks").join(self.path.file_name().unwrap_or_default());
        let _lock = Lock::hold(&lock.join("clip-engine.lock"), monitor)?;
        let listing = self.listing(monitor)?;
        let files: BTreeSet<&str> = listing.siblings.iter().map(|file| file.rfilename.as_str()).collect();
        let choice = self.choose(&files)?;
        let snapshot = self.cached.pointer_path(&listing.sha);
        let (id, revision) = (&self.id.repository, self.id.revision());
        monitor.line(&format!("fetching {id} at {revision} from {}", self.hub.endpoint));
        for name in &choice {
            self.fetch_file(name, &snapshot, monitor)?;
        }
        if choice.contains(&INDEX) {
            let index = snapshot.join(INDEX);
            let bytes = std::fs::read(&index).map_err(FetchError::io(&index, "read the file"))?;
            let shards = shards(&bytes).ok_or_else(|| self.lacks(&format!("usable {INDEX}")))?;
            for shard in &shards {
                if !files.contains(shard.as_str()) {
                    return Err(self.lacks(&format!("{shard}, which its {INDEX} lists")));
                }
                self.fetch_file(shard, &snapshot, monitor)?;
            }
        }
        if !files.contains(PREPROCESSOR) {
            self.write(&self.absence(&snapshot, PREPROCESSOR), b"")?;
        }
        if self.id.revision() != listing.sha {
            self.write(&self.reference(), listing.sha.as_bytes())?;
        }
        monitor.line(&format!("{id} is in {}", snapshot.display()));
        Ok(snapshot)
    }

    /// The files of the revision, and its commit.
    fn listing(&self, monitor: &dyn Monitor) -> Result<RepoInfo> {
        let revision = self.id.revision().to_owned();
        let repo = Repo::with_revision(self.id.repository.clone(), RepoType::Model, revision.clone());
        let url = format!("{}/api/{}", self.hub.endpoint, repo.api_url());
        let text = self.hub.http.read(&url, SMALL, monitor).map_err(|error| self.explained(error))?;
        let wrong = |problem: &str| FetchError::Hub { url: url.clone(), problem: problem.to_owned() };
        let listing: RepoInfo = serde_json::from_slice(&text)
            .map_err(|_| wrong("not the answer of a hub to a question for files"))?;
        if !is_plain(&listing.sha) {
            return Err(wrong("the answer names no commit"));
        }
        Ok(listing)
    }

    /// A refusal in terms of the model.
    fn explained(&self, error: FetchError) -> FetchError {
        let (id, repository) = (self.id.to_string(), self.id.repository.clone());
        let endpoint = self.hub.endpoint.clone();
        match error {
            FetchError::Status { status: status @ (401 | 403), .. } => {
                FetchError::NotAllowed { id, repository, endpoint, status }
            }
            FetchError::Status { status: 404, .. } => {
                FetchError::NoModel { id, endpoint, revision: self.id.revision().to_owned() }
            }
            error => error,
        }
    }

    /// Which of a repository's files are needed, the shards of an index left out.
    fn choose(&self, files: &BTreeSet<&str>) -> Result<Vec<&'static str>> {
        let has = |name: &str| files.contains(name);
        if !has(CONFIG) {
            return Err(self.lacks(CONFIG));
        }
        let mut choice = vec![CONFIG];
        choice.extend(Some(PREPROCESSOR).filter(|name| has(name)));
        if has(TOKENIZER) {
            choice.push(TOKENIZER);
        } else if TOKENIZER_PARTS.iter().all(|part| has(part)) {
            choice.extend(TOKENIZER_PARTS);
        } else {
            return Err(self.lacks("tokenizer.json, nor vocab.json and merges.txt"));
        }
        if let Some(weights) = [WEIGHTS, INDEX].into_iter().find(|name| has(name)) {
            choice.push(weights);
            return Ok(choice);
        }
        match PICKLED.into_iter().find(|name| has(name)) {
            Some(file) => Err(FetchError::Pickled {
                id: self.id.to_string(),
                repository: self.id.repository.clone(),
                revision: self.id.revision().to_owned(),
                file: file.to_owned(),
            }),
            None => Err(self.lacks(WEIGHTS)),
        }
    }

    fn lacks(&self, missing: &str) -> FetchError {
        let revision = self.id.revision().to_owned();
        FetchError::Missing { id: self.id.to_string(), revision, missing: missing.to_owned() }
    }

    /// Fetches one file of a commit: its bytes into blobs/, under the name that the hub has for them, and a
    /// link to them into the snapshot.
    fn fetch_file(&self, name: &str, snapshot: &Path, monitor: &dyn Monitor) -> Result<()> {
        let link = snapshot.join(name);
        if link.is_file() {
            return Ok(());
        }
        let commit = snapshot.file_name().unwrap_or_default().to_string_lossy();
        let url = format!("{}/{}/resolve/{commit}/{name}", self.hub.endpoint, self.id.repository);
        let headers = self.hub.http.head(&url, monitor).map_err(|error| self.explained(error))?;
        let etag = etag(&headers).ok_or_else(|| {
            let problem = "the answer names no etag, as a hub's does".to_owned();
            FetchError::Hub { url: url.clone(), problem }
        })?;
        let size = headers.get("x-linked-size").and_then(|size| size.to_str().ok()?.parse().ok());
        let limit = if name.ends_with(".safetensors") { LARGE } else { SMALL };
        let wanted = Wanted { url, name: name.to_owned(), size, limit, sum: Sum::of_etag(&etag) };
        let blob = self.cached.blob_path(&etag);
        self.make_folder(&blob)?;
        if !blob.is_file() {
            self.hub.http.fetch(&wanted, &blob, monitor).map_err(|error| self.explained(error))?;
        }
        self.make_folder(&link)?;
        put_link(&blob, &etag, &link).map_err(FetchError::io(&link, "create the link"))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.make_folder(path)?;
        write_atomic(path, bytes).map_err(FetchError::unwritten(path))
    }

    fn make_folder(&self, file: &Path) -> Result<()> {
        let folder = file.parent().unwrap_or(&self.path);
        std::fs::create_dir_all(folder).map_err(FetchError::io(folder, "create the folder"))
    }
}

/// The hub's name for a file's bytes: of a large file, which another server holds, the hub's own header says it.
fn etag(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("x-linked-etag").or_else(|| headers.get("etag"))?.to_str().ok()?;
    let value = value.strip_prefix("W/").unwrap_or(value).trim_matches('"');
    is_plain(value).then(|| value.to_owned())
}

/// Links `snapshots/COMMIT/NAME` to `blobs/ETAG` as Hugging Face's own tools do. A link that leads nowhere is
/// replaced.
#[cfg(unix)]
fn put_link(_blob: &Path, etag: &str, link: &Path) -> std::io::Result<()> {
    if link.is_symlink() {
        std::fs::remove_file(link)?;
    }
    std::os::unix::fs::symlink(Path::new("../../blobs").join(etag), link)
}

/// Where links need a right of their own, the file itself is moved, as Hugging Face's own tools do.
#[cfg(not(unix))]
fn put_link(blob: &Path, _etag: &str, link: &Path) -> std::io::Result<()> {
    std::fs::rename(blob, link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        for text in
            ["openai/clip-vit-base-patch32", "a/b", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "a_b/c.d"]
        {
            assert_eq!(HubId::parse(text).unwrap().to_string(), text);
        }
        let id = HubId::parse("a/b@refs/pr/15").unwrap();
        assert_eq!((id.repository.as_str(), id.revision()), ("a/b", "refs/pr/15"));
        assert_eq!(id.to_string(), "a/b@refs/pr/15");
        for path in [
            "model", "./a/b", "../a", "/a/b", "a/b/c", "a//b", "a/", "a/..", "a/.b", "~/b", "a/b@",
            "a/b@../x", "a/b@x//y", "a/b@/x", "a/b c", "a--b/c", "a/b@x@y", "a/b@x?y",
        ] {
            assert_eq!(HubId::parse(path), None, "{path}");
        }
    }

    #[test]
    fn the_revision_is_the_one_with_safetensors() {
        let revision = |text| HubId::parse(text).unwrap().revision().to_owned();
        assert_eq!(revision("openai/clip-vit-base-patch32"), "refs/pr/15");
        assert_eq!(revision("openai/clip-vit-base-patch32@main"), "main");
        assert_eq!(revision("laion/CLIP-ViT-B-32-laion2B-s34B-b79K"), "main");
    }

    #[test]
    fn an_index_that_leads_elsewhere_is_none() {
        let of = |file: &str| shards(format!(r#"{{"weight_map": {{"a": "{file}"}}}}"#).as_bytes());
        assert_eq!(of("model-1.safetensors").unwrap().len(), 1);
        for file in ["../x", "/x", "a/b", ".hidden", ""] {
            assert_eq!(of(file), None, "{file}");
        }
        assert_eq!(shards(br#"{"weight_map": {}}"#), None);
    }
}
