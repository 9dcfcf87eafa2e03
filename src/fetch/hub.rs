//! Models by their hub id, in the cache that Hugging Face's own tools use.

use super::environment::Environment;
use super::http::{Http, Limits, Wanted};
use super::link;
use super::lock;
use super::revision::{File, Revision};
use super::sum::Sum;
use super::{FetchError, Result};
use crate::files::{make_folder_of, write_atomic};
use crate::model_files::{
    CONFIG, IMAGES, INDEX, PICKLED, PROCESSOR_FILES, TOKENIZER, TOKENIZER_PARTS, WEIGHTS, has_images,
};
use crate::progress::Monitor;
use std::collections::BTreeSet;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use ureq::http::HeaderMap;

/// Models whose main branch has pickled weights only, and the revision of theirs that has safetensors.
const REVISIONS: [(&str, &str); 1] = [(super::DEFAULT_MODEL, "refs/pr/15")];

/// How the folder of a model begins in the cache, and what stands there for the slash of its id.
const MODELS: &str = "models--";
const SLASH: &str = "--";

/// Header with the hub's name for a file's bytes where another server has them.
const LINKED_ETAG: &str = "x-linked-etag";

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
        let plain = plain && !repository.contains(SLASH) && repository.len() <= 96;
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
    /// Cache folder of all models; Hugging Face's own tools have data sets in it too.
    cache: PathBuf,
    http: Http,
    /// Where the token is from.
    token: Option<String>,
    /// Words on the token for errors: `with the token in HF_TOKEN`, `without a token`.
    credentials: String,
    /// The variable that forbids the network.
    offline: Option<&'static str>,
    no_links: bool,
}

impl Hub {
    /// As the environment says, by the names that Hugging Face's own tools have for it: docs/data.md lists them.
    pub fn from_env() -> Result<Self> {
        let Environment { endpoint, cache, token, no_token, offline, no_links } =
            Environment::read(|name| std::env::var_os(name))?;
        let credentials = match &token {
            Some(token) => format!("with the token in {}", token.place),
            None if no_token => "without a token, as HF_HUB_DISABLE_IMPLICIT_TOKEN is set".to_owned(),
            None => "without a token".to_owned(),
        };
        let (place, secret) = token.map(|token| (token.place, token.secret)).unzip();
        let http = Http::new(Limits::default());
        let http = match secret {
            Some(secret) => http.with_token(&endpoint, secret)?,
            None => http,
        };
        Ok(Hub { endpoint, cache, http, token: place, credentials, offline, no_links })
    }

    /// The hub's address, without a slash at its end: HF_ENDPOINT, or Hugging Face's own.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The folder of the cache.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The models in the cache, whole or not, by their names.
    pub fn models(&self) -> Vec<String> {
        let folders = std::fs::read_dir(self.cache()).into_iter().flatten().filter_map(|entry| entry.ok());
        let names = folders.filter_map(|folder| folder.file_name().into_string().ok());
        let mut models: Vec<String> =
            names.filter_map(|name| Some(name.strip_prefix(MODELS)?.replace(SLASH, "/"))).collect();
        models.sort();
        models
    }

    /// Whether HF_HUB_OFFLINE forbids to ask the hub: the cache must do.
    pub fn is_offline(&self) -> bool {
        self.offline.is_some()
    }

    /// The folder with the files of a CLIP checkpoint. A snapshot in the cache that has all that is needed is
    /// used; otherwise what is missing is fetched.
    pub fn snapshot(&self, id: &HubId, monitor: &dyn Monitor) -> Result<PathBuf> {
        let model = HubModel::of(self, id);
        let cached = model.cached_snapshot()?;
        let missing = cached.as_deref().map_or(Some(CONFIG), missing);
        match (cached, missing, self.offline) {
            (Some(folder), None, None) => {
                model.complete(&folder, monitor)?;
                Ok(folder)
            }
            (Some(folder), None, Some(_)) => Ok(folder),
            (_, _, None) => model.fetch(monitor).map_err(|error| match error {
                FetchError::Request { .. } => {
                    let fetched = match id.revision() {
                        "main" => id.repository.clone(),
                        revision => format!("{} --revision {revision}", id.repository),
                    };
                    model.wrong(format!(
                        "{error}; or fetch it where there is a network, by hf download {fetched} --local-dir clip, and \
                         give --model that folder"
                    ))
                }
                error => error,
            }),
            (_, missing, Some(variable)) => Err(model.wrong(format!(
                "{variable} is set and {} lacks {} of the revision {}; unset it once to fetch the model, or give \
                 --model a folder with its files",
                self.cache.display(),
                missing.unwrap_or(CONFIG),
                id.revision()
            ))),
        }
    }
}

/// The first file that a snapshot lacks, if any, of those that a CLIP checkpoint cannot do without.
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
}

impl<'a> HubModel<'a> {
    fn of(hub: &'a Hub, id: &'a HubId) -> Self {
        let path = hub.cache.join(format!("{MODELS}{}", id.repository.replace('/', SLASH)));
        HubModel { hub, id, path }
    }

    fn snapshot_of(&self, commit: &str) -> PathBuf {
        self.path.join("snapshots").join(commit)
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
        let folder = self.snapshot_of(&commit);
        Ok((is_plain(&commit) && folder.is_dir()).then_some(folder))
    }

    /// Where the cache remembers that a commit has no such file, as Hugging Face's own tools do.
    fn absence(&self, snapshot: &Path, name: &str) -> PathBuf {
        self.path.join(".no_exist").join(snapshot.file_name().unwrap_or_default()).join(name)
    }

    /// Fetches all of the revision as it is now. The weights come last, so that a snapshot that was interrupted
    /// lacks them.
    fn fetch(&self, monitor: &dyn Monitor) -> Result<PathBuf> {
        let _lock = self.lock(monitor)?;
        let (id, revision) = (&self.id.repository, self.id.revision());
        let listed = self.ask(&self.hub.http, revision, monitor);
        let listed = listed.map_err(|error| self.public_all_the_same(error, monitor))?;
        let weights = self.choose_weights(&listed)?;
        let snapshot = self.snapshot_of(&listed.commit);
        monitor.line(&format!("fetching {id} at {revision} from {}", self.hub.endpoint));
        self.fetch_file(&self.hub.http, CONFIG, &listed, &snapshot, monitor)?;
        self.fetch_processor(&self.hub.http, &listed, &snapshot, monitor)?;
        self.fetch_file(&self.hub.http, weights, &listed, &snapshot, monitor)?;
        if weights == INDEX {
            let index = snapshot.join(INDEX);
            let bytes = std::fs::read(&index).map_err(FetchError::io(&index, "read the file"))?;
            let shards = shards(&bytes).ok_or_else(|| self.lacks(&format!("usable {INDEX}")))?;
            for shard in &shards {
                if !listed.has(shard) {
                    return Err(self.lacks(&format!("{shard}, which its {INDEX} lists")));
                }
                self.fetch_file(&self.hub.http, shard, &listed, &snapshot, monitor)?;
            }
        }
        if revision != listed.commit {
            write(&self.reference(), listed.commit.as_bytes())?;
        }
        monitor.line(&format!("{id} is in {}", snapshot.display()));
        Ok(snapshot)
    }

    /// Sees to it that a snapshot that another tool left has what is better not done without. It can be done
    /// without: the hub is asked once, and no answer is no error.
    fn complete(&self, snapshot: &Path, monitor: &dyn Monitor) -> Result<()> {
        let unsettled = self.unsettled(snapshot);
        if unsettled.is_empty() {
            return Ok(());
        }
        let commit = snapshot.file_name().unwrap_or_default().to_string_lossy();
        let http = self.hub.http.clone().asking_once();
        let fetch = || {
            let _lock = self.lock(monitor)?;
            let listed = self.ask(&http, &commit, monitor)?;
            self.fetch_processor(&http, &listed, snapshot, monitor)
        };
        match fetch() {
            Err(FetchError::Interrupted) => Err(FetchError::Interrupted),
            Err(error) => {
                monitor.warn(&format!(
                    "{}: without {}, which the hub may have ({})",
                    snapshot.display(),
                    unsettled.join(", "),
                    error.brief()
                ));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Files that a snapshot lacks and its commit may have.
    fn unsettled(&self, snapshot: &Path) -> Vec<&'static str> {
        let mut wanted = vec!["tokenizer_config.json"];
        if !has_images(snapshot) {
            wanted.extend(IMAGES.map(|(name, _)| name));
        }
        let settled = |name: &str| snapshot.join(name).is_file() || self.absence(snapshot, name).is_file();
        wanted.into_iter().filter(|name| !settled(name)).collect()
    }

    fn lock(&self, monitor: &dyn Monitor) -> Result<std::fs::File> {
        let lock = self.hub.cache().join(".locks").join(self.path.file_name().unwrap_or_default());
        lock::hold(&lock.join("clip-engine.lock"), monitor)
    }

    /// Fetches the files of tokenizer and image processor that a commit has, and remembers which it has not.
    fn fetch_processor(
        &self,
        http: &Http,
        listed: &Revision,
        snapshot: &Path,
        monitor: &dyn Monitor,
    ) -> Result<()> {
        for name in PROCESSOR_FILES {
            match listed.has(name) {
                true => self.fetch_file(http, name, listed, snapshot, monitor)?,
                false => write(&self.absence(snapshot, name), b"")?,
            }
        }
        Ok(())
    }

    /// Asks the hub for the commit and the files of a revision.
    fn ask(&self, http: &Http, revision: &str, monitor: &dyn Monitor) -> Result<Revision> {
        let (endpoint, model) = (&self.hub.endpoint, &self.id.repository);
        let revision = revision.replace('/', "%2F");
        let url = format!("{endpoint}/api/models/{model}/revision/{revision}?blobs=true");
        let text = http.read(&url, SMALL, monitor).map_err(|error| self.explained(error))?;
        let wrong = |problem: &str| FetchError::Hub { url: url.clone(), problem: problem.to_owned() };
        let listed =
            Revision::parse(&text).ok_or_else(|| wrong("not the answer of a hub to a question for files"))?;
        if !is_plain(&listed.commit) {
            return Err(wrong("the answer names no commit"));
        }
        Ok(listed)
    }

    /// A refusal in terms of the model.
    fn explained(&self, error: FetchError) -> FetchError {
        let (id, repository) = (self.id.to_string(), self.id.repository.clone());
        let (endpoint, credentials) = (self.hub.endpoint.clone(), self.hub.credentials.clone());
        match error {
            FetchError::Status { status: status @ (401 | 403), .. } => {
                FetchError::NotAllowed { id, repository, endpoint, credentials, status }
            }
            FetchError::Status { status: 404, .. } => {
                let revision = self.id.revision();
                self.wrong(format!(
                    "neither a folder here nor a model at {endpoint} with the revision {revision} (404); check the name"
                ))
            }
            error => error,
        }
    }

    /// A token that is no longer valid hides models that are there for everybody: then the error is the token's.
    fn public_all_the_same(&self, error: FetchError, monitor: &dyn Monitor) -> FetchError {
        let (FetchError::NotAllowed { status: 401, .. }, Some(place)) = (&error, &self.hub.token) else {
            return error;
        };
        let http = self.hub.http.clone().without_token().asking_once();
        match self.ask(&http, self.id.revision(), monitor) {
            Ok(_) => self.wrong(format!(
                "{} shows the model to everybody but refuses the token in {place} (401); renew the token, or set \
                 HF_HUB_DISABLE_IMPLICIT_TOKEN=1 to send none",
                self.hub.endpoint
            )),
            Err(FetchError::Interrupted) => FetchError::Interrupted,
            Err(_) => error,
        }
    }

    /// The file with the weights or their index, of a repository that has all that is needed.
    fn choose_weights(&self, listed: &Revision) -> Result<&'static str> {
        let has = |name: &str| listed.has(name);
        if !has(CONFIG) {
            return Err(self.lacks(CONFIG));
        }
        if !has(TOKENIZER) && !TOKENIZER_PARTS.iter().all(|part| has(part)) {
            return Err(self.lacks("tokenizer.json, nor vocab.json and merges.txt"));
        }
        if let Some(weights) = [WEIGHTS, INDEX].into_iter().find(|name| has(name)) {
            return Ok(weights);
        }
        match PICKLED.into_iter().find(|name| has(name)) {
            Some(file) => {
                let (revision, repository) = (self.id.revision(), &self.id.repository);
                Err(self.wrong(format!(
                    "the revision {revision} has pickled weights only ({file}); name a revision with model.safetensors \
                     ({repository}@refs/pr/N), or convert them once with: python -c \"from transformers import \
                     CLIPModel, CLIPProcessor; [c.from_pretrained('{repository}').save_pretrained('clip') for c in \
                     (CLIPModel, CLIPProcessor)]\" and give --model clip"
                )))
            }
            None => Err(self.lacks(WEIGHTS)),
        }
    }

    fn lacks(&self, missing: &str) -> FetchError {
        let revision = self.id.revision();
        self.wrong(format!(
            "the revision {revision} has no {missing}; name a CLIP checkpoint in Hugging Face's layout"
        ))
    }

    fn wrong(&self, problem: String) -> FetchError {
        FetchError::Model { id: self.id.to_string(), problem }
    }

    /// Fetches one file of a commit: its bytes into blobs/, under the name that the hub has for them, and a
    /// link to them into the snapshot.
    fn fetch_file(
        &self,
        http: &Http,
        name: &str,
        listed: &Revision,
        snapshot: &Path,
        monitor: &dyn Monitor,
    ) -> Result<()> {
        let link = snapshot.join(name);
        if link.is_file() {
            return Ok(());
        }
        let url = format!("{}/{}/resolve/{}/{name}", self.hub.endpoint, self.id.repository, listed.commit);
        let headers = http.head(&url, monitor).map_err(|error| self.explained(error))?;
        let etag = etag(&headers).ok_or_else(|| {
            let problem = "the answer names no etag, as a hub's does".to_owned();
            FetchError::Hub { url: url.clone(), problem }
        })?;
        let blob = self.path.join("blobs").join(etag);
        make_folder_of(&blob)?;
        let is_new = !blob.is_file();
        if is_new {
            let (size, sum) = known(&headers, listed.files.get(name));
            if sum == Sum::Unknown {
                monitor.line(&format!("{name}: the hub names no checksum; only its size can be checked"));
            }
            let limit = if name.ends_with(".safetensors") { LARGE } else { SMALL };
            let wanted = Wanted { url, name: name.to_owned(), size, limit, sum };
            http.fetch(&wanted, &blob, monitor).map_err(|error| self.explained(error))?;
        }
        make_folder_of(&link)?;
        let symlink = if self.hub.no_links { link::no_symlink } else { link::symlink };
        link::put(&blob, is_new, &link, symlink).map_err(FetchError::io(&link, "create the file"))
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    make_folder_of(path)?;
    Ok(write_atomic(path, bytes)?)
}

/// The hub's name for a file's bytes: of a large file, which another server holds, the hub's own header says it.
fn etag(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(LINKED_ETAG).or_else(|| headers.get("etag"))?.to_str().ok()?;
    let value = value.strip_prefix("W/").unwrap_or(value).trim_matches('"');
    is_plain(value).then(|| value.to_owned())
}

/// The size of a file and the sum that its bytes must come to, as far as the hub says them. A plain etag may be
/// the word of a proxy, which means what it likes.
fn known(headers: &HeaderMap, listed: Option<&File>) -> (Option<u64>, Sum) {
    let header = |name: &str| headers.get(name)?.to_str().ok();
    let size = listed.and_then(|file| file.size);
    let size = size.or_else(|| header("x-linked-size")?.parse().ok());
    let sum = match listed.map_or(Sum::Unknown, File::sum) {
        Sum::Unknown if headers.contains_key(LINKED_ETAG) => {
            etag(headers).map_or(Sum::Unknown, |etag| Sum::of_digits(&etag))
        }
        sum => sum,
    };
    (size, sum)
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
