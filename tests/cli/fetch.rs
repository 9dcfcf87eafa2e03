//! Fetching from servers that cut connections, lie about sizes and send wrong bytes; archives that would write
//! where they must not.

use crate::command::{command, fail_of};
use crate::server::{Reply, Server};
use clip_engine::data::{Dataset, DatasetKind};
use clip_engine::fetch::flowers102::{Bounds, Flowers102, folder};
use clip_engine::fetch::http::{Http, Limits, Wanted};
use clip_engine::fetch::{FetchError, Sum, settled_data, settled_model};
use clip_engine::progress::{Monitor, Silent};
use md5::{Digest, Md5};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// As the usual ones, for those who do not want to wait.
const HASTY: Limits = Limits {
    connect: Duration::from_secs(10),
    silence: Duration::from_secs(10),
    tries: 3,
    pause: Duration::from_millis(1),
};

/// Bytes without a period that a wrong offset could hide in.
fn bytes(count: usize) -> Vec<u8> {
    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn md5(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One file to fetch into a folder of its own.
struct Job {
    dir: TempDir,
    body: Vec<u8>,
    limits: Limits,
    size: Option<u64>,
    /// Nothing is known that the bytes must come to.
    blind: bool,
}

impl Job {
    fn new(count: usize) -> Job {
        let dir = tempfile::tempdir().unwrap();
        Job { dir, body: bytes(count), limits: HASTY, size: None, blind: false }
    }

    /// One whose mistakes no checksum would find.
    fn blind(count: usize) -> Job {
        Job { blind: true, ..Job::new(count) }
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("file.bin")
    }

    fn part(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("file.bin.part")).unwrap_or_default()
    }

    fn fetch_with(&self, http: Http, server: &Server, monitor: &dyn Monitor) -> Result<(), FetchError> {
        let (url, name) = (server.url("/file.bin"), "file.bin".into());
        let sum = if self.blind { Sum::Unknown } else { Sum::Md5(md5(&self.body)) };
        let wanted = Wanted { url, name, size: self.size, limit: 1 << 20, sum };
        http.fetch(&wanted, &self.target(), monitor)
    }

    fn fetch(&self, server: &Server) -> Result<(), FetchError> {
        self.fetch_with(Http::new(self.limits), server, &Silent)
    }

    /// The file is there, right, and alone.
    fn assert_done(&self) {
        assert_eq!(std::fs::read(self.target()).unwrap(), self.body);
        assert_eq!(names(self.dir.path()), ["file.bin"]);
    }

    fn assert_nothing_kept(&self) {
        assert_eq!(names(self.dir.path()), [""; 0]);
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn ranges(server: &Server) -> Vec<Option<String>> {
    server.asked().iter().map(|asked| asked.range().map(str::to_owned)).collect()
}

/// Stops once so many units have gone by, or a while after.
struct StopAfter {
    left: AtomicU64,
    delay: Duration,
    reached: Mutex<Option<Instant>>,
}

impl StopAfter {
    fn new(units: u64) -> Self {
        StopAfter { left: AtomicU64::new(units), delay: Duration::ZERO, reached: Mutex::new(None) }
    }
}

impl Monitor for StopAfter {
    fn begin(&self, _task: &str, _total: u64) {}
    fn advance(&self, units: u64) {
        let _ = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(units)));
    }
    fn state(&self, _text: &str) {}
    fn finish(&self) {}
    fn line(&self, _text: &str) {}
    fn stopped(&self) -> bool {
        if self.left.load(Ordering::SeqCst) > 0 {
            return false;
        }
        self.reached.lock().unwrap().get_or_insert_with(Instant::now).elapsed() >= self.delay
    }
}

#[test]
fn a_good_server_is_asked_once() {
    let job = Job::new(300_000);
    let body = job.body.clone();
    let server = Server::start(move |asked| Reply::file(&body, "\"a\"", asked));
    job.fetch(&server).unwrap();
    job.assert_done();
    assert_eq!(ranges(&server), [None]);
}

#[test]
fn a_line_that_breaks_is_resumed_until_the_file_is_whole() {
    let job = Job::new(1000);
    let body = job.body.clone();
    // More breaks in a row than tries: each brings something.
    let server = Server::start(move |asked| {
        let cut = (asked.number < 5).then_some(150);
        Reply { cut, ..Reply::file(&body, "\"a\"", asked) }
    });
    job.fetch(&server).unwrap();
    job.assert_done();
    let expected = [150, 300, 450, 600, 750].map(|start| Some(format!("bytes={start}-")));
    assert_eq!(ranges(&server)[0], None);
    assert_eq!(ranges(&server)[1..], expected);
    for asked in &server.asked()[1..] {
        assert_eq!(asked.header("if-range"), Some("\"a\""));
    }
}

#[test]
fn a_part_is_kept_between_runs() {
    let job = Job::new(1000);
    let body = job.body.clone();
    let server = Server::start(move |asked| match asked.number {
        0 => Reply { cut: Some(400), ..Reply::file(&body, "\"a\"", asked) },
        1..=3 => Reply::status(503),
        _ => Reply::file(&body, "\"a\"", asked),
    });
    let error = job.fetch(&server).unwrap_err().to_string();
    assert!(error.contains("503") && error.contains("/file.bin"), "{error}");
    assert_eq!(job.part(), job.body[..400]);
    server.forget();
    job.fetch(&server).unwrap();
    job.assert_done();
    assert_eq!(ranges(&server), [Some("bytes=400-".into())]);
}

#[test]
fn a_file_that_is_whole_but_has_no_name_yet_is_not_asked_for_again() {
    let job = Job::new(1000);
    let body = job.body.clone();
    let server = Server::start(move |asked| Reply { cut: Some(700), ..Reply::file(&body, "\"a\"", asked) });
    job.fetch_with(Http::new(HASTY), &server, &StopAfter::new(300)).unwrap_err();
    // As if the process had ended between the last byte and the name.
    std::fs::write(job.dir.path().join("file.bin.part"), &job.body).unwrap();
    server.forget();
    job.fetch(&server).unwrap();
    job.assert_done();
    assert_eq!(ranges(&server).len(), 0);
}

#[test]
fn without_a_word_for_the_file_s_state_a_broken_line_starts_over() {
    let job = Job::new(1000);
    let body = job.body.clone();
    let server =
        Server::start(move |asked| Reply { cut: (asked.number == 0).then_some(400), ..Reply::whole(&body) });
    job.fetch(&server).unwrap();
    job.assert_done();
    assert_eq!(ranges(&server), [None, None]);
}

#[test]
fn a_server_that_knows_no_ranges_is_read_from_the_start() {
    let job = Job::new(1000);
    let body = job.body.clone();
    let server = Server::start(move |asked| {
        let reply = Reply::whole(&body).with("Last-Modified", "Sat, 21 Nov 2026 10:00:00 GMT");
        Reply { cut: (asked.number < 2).then_some(400 + 100 * asked.number), ..reply }
    });
    job.fetch(&server).unwrap();
    job.assert_done();
    let asked = ranges(&server);
    assert_eq!(asked, [None, Some("bytes=400-".into()), Some("bytes=500-".into())]);
    assert_eq!(server.asked()[1].header("if-range"), Some("Sat, 21 Nov 2026 10:00:00 GMT"));
}

#[test]
fn a_file_that_changed_is_not_patched_together() {
    // One server heeds If-Range, the other sends the rest of another file.
    for heeds in [true, false] {
        let job = Job::blind(1000);
        let (new, old) = (job.body.clone(), vec![7; 1000]);
        let server = Server::start(move |asked| match asked.number {
            0 => Reply { cut: Some(400), ..Reply::file(&old, "\"old\"", asked) },
            1 if !heeds => {
                let range = "bytes 400-999/1000";
                let reply = Reply { status: 206, ..Reply::whole(&new[400..]) };
                reply.with("Content-Range", range).with("ETag", "\"new\"")
            }
            _ => Reply::file(&new, "\"new\"", asked),
        });
        job.fetch(&server).unwrap();
        job.assert_done();
        let mut expected = vec![None, Some("bytes=400-".to_owned())];
        expected.extend((!heeds).then_some(None));
        assert_eq!(ranges(&server), expected);
    }
}

#[test]
fn another_range_than_asked_for_is_not_used() {
    let job = Job::blind(1000);
    let body = job.body.clone();
    let server = Server::start(move |asked| match asked.number {
        0 => Reply { cut: Some(400), ..Reply::file(&body, "\"a\"", asked) },
        1 => {
            let reply = Reply { status: 206, ..Reply::whole(&body[300..900]) };
            reply.with("Content-Range", "bytes 300-899/1000").with("ETag", "\"a\"")
        }
        _ => Reply::file(&body, "\"a\"", asked),
    });
    job.fetch(&server).unwrap();
    job.assert_done();
    assert_eq!(ranges(&server), [None, Some("bytes=400-".into()), None]);
}

#[test]
fn a_range_that_ends_early_is_continued() {
    let job = Job::blind(1000);
    let body = job.body.clone();
    let server = Server::start(move |asked| match asked.number {
        0 => Reply { cut: Some(400), ..Reply::file(&body, "\"a\"", asked) },
        1 => {
            let reply = Reply { status: 206, ..Reply::whole(&body[400..700]) };
            reply.with("Content-Range", "bytes 400-699/1000").with("ETag", "\"a\"")
        }
        _ => Reply::file(&body, "\"a\"", asked),
    });
    job.fetch(&server).unwrap();
    job.assert_done();
    assert_eq!(ranges(&server), [None, Some("bytes=400-".into()), Some("bytes=700-".into())]);
}

#[test]
fn a_length_that_is_too_long_is_an_error_and_too_short_is_noticed() {
    let job = Job::new(1000);
    let body = job.body.clone();
    let server = Server::start(move |asked| Reply {
        length: Some(1200 - asked.range().map_or(0, |_| 1000)),
        ..Reply::file(&body, "\"a\"", asked)
    });
    let error = job.fetch(&server).unwrap_err().to_string();
    assert!(error.contains("/file.bin") && !job.target().exists(), "{error}");

    let job = Job::new(1000);
    let body = job.body.clone();
    let server =
        Server::start(move |asked| Reply { length: Some(600), ..Reply::file(&body, "\"a\"", asked) });
    let error = job.fetch(&server).unwrap_err();
    assert!(matches!(error, FetchError::Checksum { .. }), "{error}");
    job.assert_nothing_kept();
    assert_eq!(server.asked().len(), 3);
}

#[test]
fn wrong_bytes_of_the_right_length_are_refused_and_not_kept() {
    let job = Job::new(1000);
    let mut body = job.body.clone();
    body[500] ^= 1;
    let server = Server::start(move |asked| Reply::file(&body, "\"a\"", asked));
    let error = job.fetch(&server).unwrap_err();
    assert!(matches!(error, FetchError::Checksum { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&md5(&job.body)) && text.contains("/file.bin"), "{text}");
    job.assert_nothing_kept();
    assert_eq!(ranges(&server), [None, None, None]);
}

#[test]
fn an_encoding_that_was_not_asked_for_is_named_where_the_bytes_are_wrong() {
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let labelled = |body: Vec<u8>, encoding: &'static str| {
        Server::start(move |asked| Reply::file(&body, "\"v1\"", asked).with("Content-Encoding", encoding))
    };
    let refused = |job: &Job, server: &Server, encoding: &str| {
        let error = job.fetch(server).unwrap_err();
        assert!(matches!(error, FetchError::Encoded { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("Content-Encoding: {encoding}")), "{text}");
        assert!(text.contains(&server.url("/file")) && !text.contains("checksum"), "{text}");
        assert_eq!(server.asked().len(), 1, "it would be the same again");
        assert!(server.asked().iter().all(|asked| asked.header("accept-encoding") == Some("identity")));
        job.assert_nothing_kept();
    };

    // Bytes that cannot be told from others, and bytes whose sum is known.
    for job in [Job::new(1000), Job::blind(1000)] {
        refused(&job, &labelled(bytes(1500), "br"), "br");
        refused(&job, &labelled(bytes(1500), "gzip"), "gzip");
    }
    // What was compressed on its way is not decoded unseen.
    let job = Job::new(1000);
    refused(&job, &labelled(gzip(&job.body), "gzip"), "gzip");
    // An archive that is called by its own compression is as it is wanted.
    for encoding in ["x-gzip", "gzip"] {
        let archive = Job { body: gzip(&bytes(1000)), ..Job::new(0) };
        archive.fetch(&labelled(archive.body.clone(), encoding)).unwrap();
        archive.assert_done();
    }
}

#[test]
fn a_size_that_is_known_is_held_to() {
    for known in [999, 1001] {
        let job = Job { size: Some(known), ..Job::new(1000) };
        let body = job.body.clone();
        let server = Server::start(move |asked| Reply::file(&body, "\"a\"", asked));
        let error = job.fetch(&server).unwrap_err().to_string();
        assert!(error.contains("1000 bytes") && error.contains(&known.to_string()), "{error}");
        assert!(!job.target().exists());
    }
}

#[test]
fn no_file_is_larger_than_it_may_be() {
    let job = Job::new((1 << 20) + 1);
    let body = job.body.clone();
    let server = Server::start(move |asked| Reply::file(&body, "\"a\"", asked));
    let error = job.fetch(&server).unwrap_err();
    assert!(matches!(error, FetchError::TooLarge { limit: 1_048_576, .. }), "{error}");
    assert!(!job.target().exists());
}

#[test]
fn a_refusal_is_final_and_a_fault_of_the_server_is_not() {
    for status in [401, 403, 404, 410] {
        let job = Job::new(10);
        let server = Server::start(move |_| Reply::status(status));
        let error = job.fetch(&server).unwrap_err();
        assert!(matches!(error, FetchError::Status { status: found, .. } if found == status), "{error}");
        assert_eq!(server.asked().len(), 1);
        job.assert_nothing_kept();
    }
    for status in [408, 429, 500, 502, 503] {
        let job = Job::new(1000);
        let body = job.body.clone();
        let server = Server::start(move |asked| match asked.number {
            0..2 => Reply::status(status),
            _ => Reply::file(&body, "\"a\"", asked),
        });
        job.fetch(&server).unwrap();
        job.assert_done();
        let server = Server::start(move |_| Reply::status(status));
        job.fetch(&server).unwrap_err();
        assert_eq!(server.asked().len(), 3);
    }
}

#[test]
fn nobody_there_is_an_error_that_names_the_address() {
    let job = Job::new(10);
    let server = Server::start(|_| Reply::status(500));
    let url = server.url("/file.bin");
    let wanted = Wanted { url: url.clone(), name: String::new(), size: None, limit: 1, sum: Sum::Unknown };
    drop(server);
    let error = Http::new(HASTY).fetch(&wanted, &job.target(), &Silent).unwrap_err().to_string();
    assert!(error.contains(&url) && error.contains("check the network"), "{error}");
}

#[test]
fn an_https_server_is_greeted_in_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/file.bin", listener.local_addr().unwrap());
    let heard = std::thread::spawn(move || {
        let mut first = [0; 1];
        listener.accept().unwrap().0.read_exact(&mut first).unwrap();
        first
    });
    let wanted = Wanted { url: url.clone(), name: String::new(), size: None, limit: 1, sum: Sum::Unknown };
    let limits = Limits { tries: 1, ..HASTY };
    let error = Http::new(limits).fetch(&wanted, &Job::new(1).target(), &Silent).unwrap_err().to_string();
    assert!(error.contains(&url), "{error}");
    // The record type of a handshake.
    assert_eq!(heard.join().unwrap(), [22]);
}

#[test]
fn redirections_are_followed_and_the_token_is_for_its_own_server_only() {
    let job = Job::new(1000);
    let body = job.body.clone();
    let other = Server::start(move |asked| Reply::file(&body, "\"a\"", asked));
    let there = other.url("/elsewhere");
    let server = Server::start(move |asked| match asked.path.as_str() {
        "/file.bin" => Reply::redirect("/moved"),
        _ => Reply::redirect(&there),
    });
    let http = Http::new(HASTY).with_token(&server.url(""), "secret".into()).unwrap();
    assert!(!format!("{http:?}").contains("secret"));
    job.fetch_with(http, &server, &Silent).unwrap();
    job.assert_done();
    assert_eq!(server.paths(), ["GET /file.bin", "GET /moved"]);
    assert!(server.asked().iter().all(|asked| asked.header("authorization") == Some("Bearer secret")));
    assert_eq!(other.paths(), ["GET /elsewhere"]);
    assert_eq!(other.asked()[0].header("authorization"), None);

    let round = Server::start(|_| Reply::redirect("/again"));
    let error = job.fetch(&round).unwrap_err().to_string();
    assert!(error.contains("redirections"), "{error}");
}

#[test]
fn a_silent_server_is_given_up() {
    for mute in [true, false] {
        let limits = Limits { silence: Duration::from_millis(150), ..HASTY };
        let job = Job { limits, ..Job::new(1000) };
        let body = job.body.clone();
        // Three that bring nothing, after one that brings something where the headers come.
        let silent = if mute { 3 } else { 4 };
        let server = Server::start(move |asked| Reply {
            hang: (asked.number < silent).then_some(if asked.number == 0 { 400 } else { 0 }),
            mute: mute && asked.number < silent,
            ..Reply::file(&body, "\"a\"", asked)
        });
        let error = job.fetch(&server).unwrap_err().to_string();
        assert!(error.contains("/file.bin") && error.contains("timeout"), "{error}");
        let part = if mute { 0 } else { 400 };
        assert_eq!((job.part().len(), server.asked().len()), (part, silent));
        job.fetch(&server).unwrap();
        job.assert_done();
    }
}

#[test]
fn ctrl_c_keeps_the_part_and_does_not_wait_for_a_silent_server() {
    let job = Job::new(1000);
    let body = job.body.clone();
    let server = Server::start(move |asked| Reply {
        hang: (asked.number == 0).then_some(400),
        ..Reply::file(&body, "\"a\"", asked)
    });
    // By the time of the stop the silence has begun.
    let stop = StopAfter { delay: Duration::from_millis(300), ..StopAfter::new(400) };
    let limits = Limits { silence: Duration::from_secs(120), ..HASTY };
    let started = Instant::now();
    let error = job.fetch_with(Http::new(limits), &server, &stop).unwrap_err();
    assert!(matches!(error, FetchError::Interrupted), "{error}");
    assert!(started.elapsed() < Duration::from_secs(60));
    assert_eq!(job.part(), job.body[..400]);
    job.fetch(&server).unwrap();
    job.assert_done();
    assert_eq!(ranges(&server), [None, Some("bytes=400-".into())]);
}

/// An entry of an archive.
#[derive(Clone)]
struct Entry {
    name: Vec<u8>,
    kind: tar::EntryType,
    body: Vec<u8>,
    link: Option<&'static str>,
}

fn file(name: &str, body: &[u8]) -> Entry {
    Entry { name: name.into(), kind: tar::EntryType::Regular, body: body.to_vec(), link: None }
}

/// Seconds since 1970 of the photos in an archive.
const PHOTO_TIME: u64 = 1_234_567_890;

/// A .tgz, with names as they are given: the tar crate would refuse to write the worst of them.
fn tgz(entries: &[Entry]) -> Vec<u8> {
    let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut archive = tar::Builder::new(gz);
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..entry.name.len()].copy_from_slice(&entry.name);
        header.set_entry_type(entry.kind);
        header.set_mode(0o644);
        header.set_mtime(PHOTO_TIME);
        header.set_size(entry.body.len() as u64);
        if let Some(link) = entry.link {
            header.set_link_name(link).unwrap();
        }
        header.set_cksum();
        archive.append(&header, entry.body.as_slice()).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

/// A small data set of the same files, and a server that has it.
struct Flowers {
    dir: TempDir,
    server: Server,
    set: Flowers102,
}

impl Flowers {
    /// With the photos that belong to it and `more` in the archive.
    fn new(more: &[Entry]) -> Flowers {
        let dir = tempfile::tempdir().unwrap();
        let origin = dir.path().join("origin");
        crate::files::flowers(&origin, false);
        let photos = names(&origin.join("jpg")).into_iter().map(|name| {
            let body = std::fs::read(origin.join("jpg").join(&name)).unwrap();
            file(&format!("jpg/{name}"), &body)
        });
        let folder = Entry { kind: tar::EntryType::Directory, ..file("jpg/", b"") };
        let entries: Vec<Entry> = [folder].into_iter().chain(photos).chain(more.iter().cloned()).collect();
        let read = |name: &str| std::fs::read(origin.join(name)).unwrap();
        let files = [
            ("/mirror/102flowers.tgz", tgz(&entries)),
            ("/mirror/imagelabels.mat", read("imagelabels.mat")),
            ("/mirror/setid.mat", read("setid.mat")),
        ];
        let [archive_md5, labels_md5, splits_md5] = files.clone().map(|(_, body)| md5(&body));
        let server = Server::start(move |asked| match files.iter().find(|(path, _)| *path == asked.path) {
            Some((_, body)) => Reply::file(body, "\"a\"", asked),
            None => Reply::status(404),
        });
        let (url, limits, bounds) = (server.url("/mirror/"), HASTY, Bounds::default());
        let set = Flowers102 { url, archive_md5, labels_md5, splits_md5, limits, bounds };
        Flowers { dir, server, set }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("cache/flowers102")
    }

    fn fetch(&self) -> Result<(), FetchError> {
        self.set.fetch(&self.root(), &Silent)
    }

    /// Everything below the test's folder that is not the origin's.
    fn written(&self) -> Vec<String> {
        let entries = walkdir::WalkDir::new(self.dir.path()).sort_by_file_name().into_iter();
        let files = entries.map(|entry| entry.unwrap()).filter(|entry| !entry.file_type().is_dir());
        let names =
            files.map(|file| file.path().strip_prefix(self.dir.path()).unwrap().display().to_string());
        names.filter(|name| !name.starts_with("origin/")).collect()
    }
}

const LISTS_AND_ARCHIVE: [&str; 4] = [
    "cache/flowers102/flowers-102/.lock",
    "cache/flowers102/flowers-102/102flowers.tgz",
    "cache/flowers102/flowers-102/imagelabels.mat",
    "cache/flowers102/flowers-102/setid.mat",
];

#[test]
fn flowers_are_fetched_once_and_can_be_opened() {
    let notes = [file("jpg/readme.txt", b"?"), file("other/image.jpg", b"?"), file("jpg/.hidden.jpg", b"?")];
    let flowers = Flowers::new(&notes);
    flowers.fetch().unwrap();
    let mut asked = flowers.server.paths();
    asked.sort();
    assert_eq!(asked, ["102flowers.tgz", "imagelabels.mat", "setid.mat"].map(|f| format!("GET /mirror/{f}")));
    let source = Dataset::open(&flowers.root(), 1).unwrap();
    assert_eq!(source.kind, DatasetKind::Flowers102);
    assert_eq!((source.train.len(), source.val.len(), source.test.len()), (2, 1, 2));
    let photos = folder(&flowers.root()).join("jpg");
    assert_eq!(names(&photos).len(), 5);
    for name in names(&photos) {
        // So that the photos are no other ones when they are unpacked again.
        let modified = std::fs::metadata(photos.join(&name)).unwrap().modified().unwrap();
        assert_eq!(modified, std::time::UNIX_EPOCH + Duration::from_secs(PHOTO_TIME), "{name}");
    }

    // All there; the archive is not needed any more.
    flowers.server.forget();
    std::fs::remove_file(folder(&flowers.root()).join("102flowers.tgz")).unwrap();
    flowers.fetch().unwrap();
    assert_eq!(flowers.server.paths(), [""; 0]);

    // What is wrong is fetched again, and nothing else.
    std::fs::write(folder(&flowers.root()).join("setid.mat"), "damaged").unwrap();
    flowers.fetch().unwrap();
    assert_eq!(flowers.server.paths(), ["GET /mirror/setid.mat"]);
    Dataset::open(&flowers.root(), 1).unwrap();
}

#[test]
fn files_put_there_by_hand_are_used() {
    let flowers = Flowers::new(&[]);
    flowers.fetch().unwrap();
    std::fs::remove_dir_all(folder(&flowers.root()).join("jpg")).unwrap();
    flowers.server.forget();
    flowers.fetch().unwrap();
    assert_eq!(flowers.server.paths(), [""; 0]);
    Dataset::open(&flowers.root(), 1).unwrap();
}

#[test]
fn an_archive_that_leads_elsewhere_is_refused_and_nothing_is_written() {
    let outside = tempfile::tempdir().unwrap();
    let absolute = outside.path().join("evil.jpg").display().to_string();
    let of_kind = |kind, link| Entry { kind, link: Some(link), ..file("jpg/evil.jpg", b"") };
    let device = |kind| Entry { kind, ..file("jpg/evil.jpg", b"") };
    for (evil, problem) in [
        (file("../evil.jpg", b"?"), "leads out"),
        (file("jpg/../../evil.jpg", b"?"), "leads out"),
        (file("jpg/..", b"?"), "leads out"),
        (file(&absolute, b"?"), "leads out"),
        (file("jpg\\..\\evil.jpg", b"?"), "leads out"),
        (file("C:jpg/evil.jpg", b"?"), "leads out"),
        (of_kind(tar::EntryType::Symlink, "/etc/passwd"), "neither a file"),
        (of_kind(tar::EntryType::Link, "jpg/image_00001.jpg"), "neither a file"),
        (device(tar::EntryType::Char), "neither a file"),
        (device(tar::EntryType::Block), "neither a file"),
        (device(tar::EntryType::Fifo), "neither a file"),
        (device(tar::EntryType::GNUSparse), "damaged"),
        (file("jpg/image_00001.jpg", b"twice"), "image_00001.jpg"),
    ] {
        let name = String::from_utf8_lossy(&evil.name).into_owned();
        let flowers = Flowers::new(&[evil]);
        let error = flowers.fetch().unwrap_err().to_string();
        assert!(error.contains(problem), "{name}: {error}");
        assert_eq!(flowers.written(), LISTS_AND_ARCHIVE, "{name}");
        assert_eq!(names(outside.path()), [""; 0], "{name}");
        assert!(!folder(&flowers.root()).join("jpg").exists(), "{name}");
    }
}

#[test]
fn an_archive_has_bounds() {
    let flowers = Flowers::new(&[]);
    let photo = std::fs::metadata(crate::files::photo("base_420_q60.jpg")).unwrap().len();
    for (bounds, problem) in [
        (Bounds { entries: 5, ..Bounds::default() }, "more than 5 entries"),
        (Bounds { bytes: 3 * photo, ..Bounds::default() }, "larger than"),
    ] {
        let set = Flowers102 { bounds, ..flowers.set.clone() };
        let error = set.fetch(&flowers.root(), &Silent).unwrap_err().to_string();
        assert!(error.contains(problem) && error.contains("102flowers.tgz"), "{error}");
        assert_eq!(flowers.written(), LISTS_AND_ARCHIVE);
    }
    let set = Flowers102 { bounds: Bounds { entries: 6, ..Bounds::default() }, ..flowers.set.clone() };
    set.fetch(&flowers.root(), &Silent).unwrap();
}

#[test]
fn what_is_no_archive_of_photos_is_refused() {
    let empty = tgz(&[file("notes.txt", b"?")]);
    let whole = tgz(&[file("jpg/a.jpg", &bytes(100_000))]);
    for archive in [b"no archive at all".to_vec(), empty, whole[..whole.len() / 2].to_vec()] {
        let flowers = Flowers::new(&[]);
        let set = Flowers102 { archive_md5: md5(&archive), ..flowers.set.clone() };
        std::fs::create_dir_all(folder(&flowers.root())).unwrap();
        std::fs::write(folder(&flowers.root()).join("102flowers.tgz"), archive).unwrap();
        let error = set.fetch(&flowers.root(), &Silent).unwrap_err().to_string();
        assert!(error.contains("nothing was unpacked"), "{error}");
        assert_eq!(flowers.written(), LISTS_AND_ARCHIVE);
    }
}

#[test]
fn an_interrupted_unpacking_is_not_taken_for_finished() {
    let flowers = Flowers::new(&[]);
    flowers.fetch().unwrap();
    std::fs::remove_dir_all(folder(&flowers.root()).join("jpg")).unwrap();
    let error = flowers.set.fetch(&flowers.root(), &StopAfter::new(1)).unwrap_err();
    assert!(matches!(error, FetchError::Interrupted), "{error}");
    assert!(!folder(&flowers.root()).join("jpg").exists());
    // A process that was killed leaves its photos behind.
    let left = folder(&flowers.root()).join(".unpacking");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("half.jpg"), "half").unwrap();
    flowers.fetch().unwrap();
    assert_eq!(names(&folder(&flowers.root()).join("jpg")).len(), 5);
    Dataset::open(&flowers.root(), 1).unwrap();
}

#[test]
fn two_processes_do_not_fetch_into_one_folder() {
    let flowers = Flowers::new(&[]);
    let lock = folder(&flowers.root()).join(".lock");
    std::fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let held = std::fs::File::create(&lock).unwrap();
    held.lock().unwrap();
    std::thread::scope(|scope| {
        let fetching = scope.spawn(|| flowers.fetch());
        std::thread::sleep(Duration::from_millis(300));
        assert!(!fetching.is_finished() && flowers.server.paths().is_empty());
        held.unlock().unwrap();
        fetching.join().unwrap().unwrap();
    });
    // What is complete needs no lock.
    held.lock().unwrap();
    std::thread::scope(|scope| {
        let fetching = scope.spawn(|| flowers.fetch());
        let until = Instant::now() + Duration::from_secs(10);
        while !fetching.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        let finished = fetching.is_finished();
        held.unlock().unwrap();
        fetching.join().unwrap().unwrap();
        assert!(finished);
    });
    Dataset::open(&flowers.root(), 1).unwrap();
}

#[test]
fn the_command_says_where_to_put_the_files_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_| Reply::status(404));
    let mut prep = command(&["prep", "--data", "flowers102"], dir.path());
    prep.env("CLIP_ENGINE_FLOWERS102_URL", server.url("/mirror"));
    let place = dir.path().join("clip-engine/flowers102/flowers-102").display().to_string();
    let file = server.url("/mirror/imagelabels.mat");
    fail_of(&mut prep, 1, &["--data flowers102", &file, "404", "102flowers.tgz", "setid.mat", &place]);
    assert_eq!(server.paths(), ["GET /mirror/imagelabels.mat"]);

    // A mirror is no reason to trust other bytes.
    let server = Server::start(|asked| Reply::file(b"not the labels", "\"a\"", asked));
    prep.env("CLIP_ENGINE_FLOWERS102_URL", server.url("/mirror/"));
    fail_of(&mut prep, 1, &["imagelabels.mat", "checksum", "e0620be6f572b9609742df49c70aed4d", &place]);
    assert_eq!(names(Path::new(&place)), [".lock"]);
}

#[test]
fn a_folder_wins_over_a_name() {
    // Names of the hub and of the data set that are folders here: the tests run in the package's own.
    let here = std::env::current_dir().unwrap();
    assert_eq!(settled_model(Path::new("assets/demo-clip")), here.join("assets/demo-clip"));
    assert_eq!(settled_model(Path::new("openai/clip")), Path::new("openai/clip"));
    assert_eq!(settled_model(Path::new("no-such-folder")), here.join("no-such-folder"));
    assert_eq!(settled_data(Path::new("flowers102")), Path::new("flowers102"));
    assert_eq!(settled_data(Path::new("flowers")), here.join("flowers"));
}
