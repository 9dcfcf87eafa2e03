//! One file over HTTP, on a line that may break: what arrived is kept in a part and the rest is asked for.

use super::sum::Sum;
use super::{FetchError, Result};
use crate::files::{remove, sync_folder_of, write_atomic};
use crate::progress::Monitor;
use crate::words::one_line;
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use ureq::http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderName, IF_RANGE,
    LAST_MODIFIED, LOCATION, RANGE,
};
use ureq::http::{HeaderMap, Method, Request, Response, Uri};
use ureq::{Agent, Body};

/// Redirections in a row.
const MAX_REDIRECTS: usize = 10;

/// How often it is looked whether the user wants to stop.
const WATCH: Duration = Duration::from_millis(50);

/// How long to wait, and how often to ask again.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest wait for a name to be looked up, and for the connection.
    pub connect: Duration,
    /// Longest wait between two bytes.
    pub silence: Duration,
    /// Tries in a row that bring no new byte.
    pub tries: u32,
    /// Pause after the first such try; twice as long after the second.
    pub pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Limits { connect: seconds(20), silence: seconds(30), tries: 3, pause: seconds(2) }
    }
}

/// A file to fetch.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Where the request starts; it may be redirected.
    pub url: String,
    /// How the progress calls it.
    pub name: String,
    /// Bytes, where they are known.
    pub size: Option<u64>,
    /// No file of the kind has more bytes.
    pub limit: u64,
    /// Checksum of the whole file.
    pub sum: Sum,
}

/// Asks one server, and those it points to.
#[derive(Debug, Clone, Default)]
pub struct Http {
    limits: Limits,
    token: Option<Token>,
}

/// A secret, and the only server that is told.
#[derive(Clone)]
struct Token {
    server: Origin,
    secret: String,
}

/// Whatever prints it must not give it away.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token for {:?}", self.server)
    }
}

type Origin = (String, String, u16);

impl Http {
    /// Without a token; [`Http::with_token`] adds one.
    pub fn new(limits: Limits) -> Self {
        Http { limits, token: None }
    }

    /// Sends `token` to the server of `endpoint`, and to no other that it points to.
    pub fn with_token(self, endpoint: &str, token: String) -> Result<Self> {
        let token = Token { server: origin(&parse(endpoint)?), secret: token };
        Ok(Http { token: Some(token), ..self })
    }

    pub(super) fn without_token(self) -> Self {
        Http { token: None, ..self }
    }

    /// A question without an answer is not repeated.
    pub(super) fn asking_once(self) -> Self {
        Http { limits: Limits { tries: 1, ..self.limits }, ..self }
    }

    /// The headers of the answer for `url`, without its body. Redirections to other servers are not followed:
    /// what is known of the file is said before.
    pub fn head(&self, url: &str, monitor: &dyn Monitor) -> Result<HeaderMap> {
        self.repeated(monitor, |agent| {
            let (_, response) = self.send(agent, Method::HEAD, url, &[], true)?;
            let status = response.status();
            match status.is_success() || status.is_redirection() {
                true => Ok(response.into_parts().0.headers),
                false => Err(FetchError::Status { url: url.to_owned(), status: status.as_u16() }),
            }
        })
    }

    /// The body for `url`, of at most `limit` bytes.
    pub fn read(&self, url: &str, limit: u64, monitor: &dyn Monitor) -> Result<Vec<u8>> {
        self.repeated(monitor, |agent| {
            let (_, response) = self.send(agent, Method::GET, url, &[], false)?;
            if !response.status().is_success() {
                return Err(FetchError::Status { url: url.to_owned(), status: response.status().as_u16() });
            }
            if let Some(encoding) = encoding(response.headers()) {
                return Err(encoded(url, &encoding));
            }
            let mut bytes = Vec::new();
            let mut body = response.into_body().into_reader().take(limit + 1);
            body.read_to_end(&mut bytes).map_err(|e| broken(url, &e))?;
            match bytes.len() as u64 > limit {
                true => Err(FetchError::TooLarge { url: url.to_owned(), limit }),
                false => Ok(bytes),
            }
        })
    }

    /// Fetches a file and gives it the name `target` once it is whole and right. Until then it is TARGET.part,
    /// which an earlier call may have left and a later one may go on with.
    pub fn fetch(&self, wanted: &Wanted, target: &Path, monitor: &dyn Monitor) -> Result<()> {
        let part = PartialFile::of(target);
        let mut best = part.length();
        let (agent, mut failures) = (self.agent(), 0);
        stoppable(&agent, monitor, || {
            loop {
                let done = self.attempt(&agent, wanted, &part, monitor);
                let Err(error) = done.and_then(|encoding| part.verify(wanted, encoding.as_deref())) else {
                    return part.keep(target);
                };
                // Whoever gets on, however often the line breaks, is not to be given up.
                let length = part.length();
                (best, failures) = if length > best { (length, 0) } else { (best, failures + 1) };
                self.pause_after(error, failures, monitor)?;
            }
        })
    }

    /// Makes a request until it has an answer.
    fn repeated<T>(&self, monitor: &dyn Monitor, request: impl Fn(&Agent) -> Result<T>) -> Result<T> {
        let (agent, mut failures) = (self.agent(), 0);
        stoppable(&agent, monitor, || {
            loop {
                match request(&agent) {
                    Ok(answer) => return Ok(answer),
                    Err(error) => {
                        failures += 1;
                        self.pause_after(error, failures, monitor)?;
                    }
                }
            }
        })
    }

    /// Waits before the next try, or returns the error where there is none.
    fn pause_after(&self, error: FetchError, failures: u32, monitor: &dyn Monitor) -> Result<()> {
        if monitor.stopped() {
            return Err(FetchError::Interrupted);
        }
        if !error.may_pass() || failures >= self.limits.tries {
            return Err(error);
        }
        monitor.line(&format!("{}; trying again", error.brief()));
        let until = Instant::now() + self.limits.pause * 2u32.saturating_pow(failures.saturating_sub(1));
        while Instant::now() < until {
            if monitor.stopped() {
                return Err(FetchError::Interrupted);
            }
            std::thread::sleep(WATCH.min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    /// A new one for each piece of work: stopping one ends all its requests, for good.
    fn agent(&self) -> Agent {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Redirections are followed here, where it is known who may see the token.
            .max_redirects(0)
            .timeout_resolve(Some(self.limits.connect))
            .timeout_connect(Some(self.limits.connect))
            .timeout_recv_response(Some(2 * self.limits.silence))
            .timeout_per_read(Some(self.limits.silence))
            .timeout_per_write(Some(self.limits.silence))
            // Compressed on the way, a file could not be continued, nor its length be known.
            .accept_encoding("identity")
            .user_agent(concat!("clip-engine/", env!("CARGO_PKG_VERSION")))
            .build();
        config.into()
    }

    /// One request and the redirections that it meets. `stay` returns a redirection to another server as it is.
    fn send(
        &self,
        agent: &Agent,
        method: Method,
        url: &str,
        headers: &[(HeaderName, String)],
        stay: bool,
    ) -> Result<(Uri, Response<Body>)> {
        let refuse = |problem: String| FetchError::Request { url: url.to_owned(), problem };
        let mut here = parse(url)?;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::builder().method(method.clone()).uri(&here);
            for (name, value) in headers {
                request = request.header(name, value);
            }
            if let Some(token) = self.token.as_ref().filter(|token| token.server == origin(&here)) {
                request = request.header(AUTHORIZATION, format!("Bearer {}", token.secret));
            }
            let request = request.body(()).map_err(|e| refuse(e.to_string()))?;
            let response = agent.run(request).map_err(|e| refuse(one_line(&e)))?;
            let next = match header(response.headers(), LOCATION) {
                Some(location) if response.status().is_redirection() => join(&here, location),
                _ => return Ok((here, response)),
            };
            let next = next.ok_or_else(|| refuse("redirected to something that is no address".into()))?;
            if stay && origin(&next) != origin(&here) {
                return Ok((here, response));
            }
            if here.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(refuse(format!("redirected to {next}, which is not encrypted")));
            }
            here = next;
        }
        Err(refuse(format!("more than {MAX_REDIRECTS} redirections")))
    }

    /// One request for what the part lacks. Returns once the part is as long as the server says, with the
    /// encoding that the server names for it.
    fn attempt(
        &self,
        agent: &Agent,
        wanted: &Wanted,
        part: &PartialFile,
        monitor: &dyn Monitor,
    ) -> Result<Option<String>> {
        let refuse = |problem: String| FetchError::Request { url: wanted.url.clone(), problem };
        let (have, note) = part.state(wanted)?;
        if note.as_ref().is_some_and(|note| note.total == Some(have)) {
            return Ok(None);
        }
        let mut headers = Vec::new();
        if let Some(note) = &note {
            headers.push((RANGE, format!("bytes={have}-")));
            // A server whose file is another by now then sends all of it.
            headers.push((IF_RANGE, note.validator.clone()));
        }
        let (_, response) = self.send(agent, Method::GET, &wanted.url, &headers, false)?;
        let (start, total) = match response.status().as_u16() {
            200 => (0, number(header(response.headers(), CONTENT_LENGTH))),
            206 | 416 => match continuation(response.headers(), have, note.as_ref()) {
                Some(total) => (have, total),
                None => {
                    part.discard()?;
                    return Err(refuse("the server sent another part of the file than asked for".into()));
                }
            },
            status => return Err(FetchError::Status { url: wanted.url.clone(), status }),
        };
        if let (Some(size), Some(total)) = (wanted.size, total)
            && size != total
        {
            return Err(refuse(format!("the server offers {total} bytes where {size} are right")));
        }
        if start == 0 {
            part.begin(wanted, response.headers(), total)?;
        }
        let encoding = encoding(response.headers());
        let total = total.or(wanted.size);
        monitor.begin_bytes(&wanted.name, total.unwrap_or(0));
        monitor.advance(start);
        let copied = copy(response.into_body(), start, wanted, part, monitor);
        monitor.finish();
        let length = copied?;
        match total {
            Some(total) if total != length => {
                Err(refuse(format!("the connection ended after {length} of {total} bytes")))
            }
            _ => Ok(encoding),
        }
    }
}

/// Appends a body to the part, which has `start` bytes. Returns how many it has then.
fn copy(body: Body, start: u64, wanted: &Wanted, part: &PartialFile, monitor: &dyn Monitor) -> Result<u64> {
    let io = |e| FetchError::io(&part.path, "write the file")(e);
    let mut file =
        OpenOptions::new().create(true).truncate(false).write(true).open(&part.path).map_err(io)?;
    file.set_len(start).map_err(io)?;
    file.seek(SeekFrom::Start(start)).map_err(io)?;
    let (mut body, mut length) = (body.into_reader(), start);
    let mut buffer = vec![0; 1 << 16];
    loop {
        if monitor.stopped() {
            return Err(FetchError::Interrupted);
        }
        let count = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(broken(&wanted.url, &e)),
        };
        length += count as u64;
        if length > wanted.limit {
            return Err(FetchError::TooLarge { url: wanted.url.clone(), limit: wanted.limit });
        }
        file.write_all(&buffer[..count]).map_err(io)?;
        monitor.advance(count as u64);
    }
    file.sync_all().map_err(io)?;
    Ok(length)
}

/// Lets `work` run, and ends the requests of `agent` when the user wants to stop: a server that is silent
/// would hold them.
fn stoppable<T>(agent: &Agent, monitor: &dyn Monitor, work: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                if monitor.stopped() {
                    agent.clone().shutdown();
                    return;
                }
                std::thread::park_timeout(WATCH);
            }
        });
        let result = work();
        over.store(true, Ordering::Release);
        watch.thread().unpark();
        result
    })
}

/// Note beside the part of a file that is here: which file it is a part of.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    url: String,
    /// Mark by which the server knows whether its file is still the same.
    validator: String,
    total: Option<u64>,
}

/// The beginning of a file, and a note of which.
struct PartialFile {
    path: PathBuf,
    note: PathBuf,
}

impl PartialFile {
    fn of(target: &Path) -> PartialFile {
        let beside = |ending: &str| {
            let mut path = target.as_os_str().to_owned();
            path.push(ending);
            PathBuf::from(path)
        };
        PartialFile { path: beside(".part"), note: beside(".part.json") }
    }

    fn length(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |found| found.len())
    }

    /// How many bytes can be kept, and their note. Bytes whose origin is not known cannot be.
    fn state(&self, wanted: &Wanted) -> Result<(u64, Option<Note>)> {
        let length = self.length();
        let text = match std::fs::read(&self.note) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok((0, None)),
            Err(e) => return Err(FetchError::io(&self.note, "read the file")(e)),
        };
        let note = serde_json::from_slice::<Note>(&text).ok();
        let note = note.filter(|note| note.url == wanted.url && length > 0);
        let note = note.filter(|note| note.total.is_none_or(|total| length <= total));
        Ok((note.as_ref().map_or(0, |_| length), note))
    }

    /// Notes what the bytes to come are of, and forgets those that are there.
    fn begin(&self, wanted: &Wanted, headers: &HeaderMap, total: Option<u64>) -> Result<()> {
        self.discard()?;
        let Some(validator) = validator(headers) else { return Ok(()) };
        let note = Note { url: wanted.url.clone(), validator: validator.to_owned(), total };
        let text = serde_json::to_vec(&note).unwrap_or_default();
        Ok(write_atomic(&self.note, &text)?)
    }

    /// Checks the whole file. One that is wrong is of no use to a later try. Bytes that are right are so by
    /// whatever encoding the server calls them: an archive may bear the name of its own compression.
    fn verify(&self, wanted: &Wanted, encoding: Option<&str>) -> Result<()> {
        let length = self.length();
        let wrong_size = wanted.size.is_some_and(|size| size != length);
        let sums = match wanted.sum.mismatch(&self.path)? {
            None if wrong_size => {
                Some((format!("of {} bytes", wanted.size.unwrap_or(0)), format!("of {length}")))
            }
            sums => sums,
        };
        let error = match (sums, encoding) {
            (None, None) => return Ok(()),
            (None, Some(_)) if wanted.sum != Sum::Unknown => return Ok(()),
            (_, Some(encoding)) => encoded(&wanted.url, encoding),
            (Some((expected, found)), None) => {
                FetchError::Checksum { url: wanted.url.clone(), expected, found }
            }
        };
        self.discard()?;
        Err(error)
    }

    fn discard(&self) -> Result<()> {
        Ok([&self.path, &self.note].into_iter().try_for_each(|path| remove(path))?)
    }

    fn keep(&self, target: &Path) -> Result<()> {
        std::fs::rename(&self.path, target).map_err(FetchError::io(target, "name the file"))?;
        sync_folder_of(target);
        self.discard()
    }
}

/// Mark that tells a file from its successor: a strong entity tag, or else the time of its last change.
fn validator(headers: &HeaderMap) -> Option<&str> {
    let strong = header(headers, ETAG).filter(|tag| !tag.starts_with("W/"));
    strong.or_else(|| header(headers, LAST_MODIFIED))
}

/// The length of the whole file, or None inside where the server does not know it, if this is what comes
/// after the first `have` bytes of the file of `note`.
fn continuation(headers: &HeaderMap, have: u64, note: Option<&Note>) -> Option<Option<u64>> {
    let note = note?;
    if validator(headers).is_some_and(|found| found != note.validator) {
        return None;
    }
    let (range, total) = header(headers, CONTENT_RANGE)?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    let total = total.parse().ok();
    let same = total.is_none() || note.total.is_none() || total == note.total;
    (first.trim().parse() == Ok(have) && same).then_some(total)
}

fn header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn number(text: Option<&str>) -> Option<u64> {
    text?.trim().parse().ok()
}

fn parse(url: &str) -> Result<Uri> {
    let problem =
        || FetchError::Request { url: url.to_owned(), problem: "not an http or https address".into() };
    let uri: Uri = url.parse().map_err(|_| problem())?;
    let known = matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
    if known { Ok(uri) } else { Err(problem()) }
}

fn origin(uri: &Uri) -> Origin {
    let scheme = uri.scheme_str().unwrap_or_default().to_owned();
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    (scheme, uri.host().unwrap_or_default().to_ascii_lowercase(), port)
}

/// Where a redirection leads: to an address, or to a path on the same server.
fn join(here: &Uri, location: &str) -> Option<Uri> {
    if !location.starts_with('/') {
        return parse(location).ok();
    }
    let scheme = here.scheme_str()?;
    match location.starts_with("//") {
        true => parse(&format!("{scheme}:{location}")).ok(),
        false => parse(&format!("{scheme}://{}{location}", here.authority()?)).ok(),
    }
}

/// How a server says that it changed the bytes, if it does.
fn encoding(headers: &HeaderMap) -> Option<String> {
    let encoding = header(headers, CONTENT_ENCODING)?.trim();
    (!encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity")).then(|| encoding.to_owned())
}

fn encoded(url: &str, encoding: &str) -> FetchError {
    let problem = format!("the server labels it Content-Encoding: {encoding}");
    FetchError::Encoded { url: url.to_owned(), problem }
}

fn broken(url: &str, error: &std::io::Error) -> FetchError {
    let problem = format!("the connection broke off ({})", one_line(error));
    FetchError::Request { url: url.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirections_lead_where_they_say() {
        let here = parse("https://hub.example:8443/a/b?c").unwrap();
        for (location, expected) in [
            ("/x/y?z", Some("https://hub.example:8443/x/y?z")),
            ("//cdn.example/x", Some("https://cdn.example/x")),
            ("http://cdn.example/x", Some("http://cdn.example/x")),
            ("ftp://cdn.example/x", None),
            ("x/y", None),
        ] {
            assert_eq!(join(&here, location), expected.map(|uri| uri.parse().unwrap()), "{location}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| origin(&parse(a).unwrap()) == origin(&parse(b).unwrap());
        assert!(same("https://hub.example/a", "https://HUB.example:443/b"));
        assert!(!same("https://hub.example", "http://hub.example"));
        assert!(!same("https://hub.example", "https://hub.example:8443"));
        assert!(!same("https://hub.example", "https://cdn.hub.example"));
    }

    #[test]
    fn only_the_rest_of_the_same_file_continues_it() {
        let note = Note { url: String::new(), validator: "\"a\"".into(), total: Some(10) };
        let continues = |range: &str, tag: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, range.parse().unwrap());
            headers.insert(ETAG, tag.parse().unwrap());
            continuation(&headers, 4, Some(&note))
        };
        assert_eq!(continues("bytes 4-9/10", "\"a\""), Some(Some(10)));
        assert_eq!(continues("bytes 4-9/*", "\"a\""), Some(None));
        assert_eq!(continues("bytes 0-9/10", "\"a\""), None);
        assert_eq!(continues("bytes 4-9/11", "\"a\""), None);
        assert_eq!(continues("bytes 4-9/10", "\"b\""), None);
        assert_eq!(continues("bytes */10", "\"a\""), None);
    }
}
