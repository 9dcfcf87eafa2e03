//! An HTTP server that can be told to misbehave, for the tests of fetching.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    headers: Vec<(String, String)>,
    /// How many requests came before it.
    pub number: usize,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub fn range(&self) -> Option<&str> {
        self.header("range")
    }
}

/// An answer, honest or not.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// What Content-Length says, where it is not the truth.
    pub length: Option<usize>,
    /// The connection is cut, or falls silent, after so many bytes of the body.
    pub cut: Option<usize>,
    pub hang: Option<usize>,
    /// Not even the headers come.
    pub mute: bool,
}

impl Reply {
    pub fn status(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }

    pub fn whole(body: &[u8]) -> Reply {
        Reply { status: 200, body: body.to_vec(), ..Reply::default() }
    }

    /// What a good server says: all of a file, or the range that was asked for if the file is still the same.
    pub fn file(body: &[u8], etag: &str, asked: &Asked) -> Reply {
        let same = asked.header("if-range").is_none_or(|tag| tag == etag);
        let start = asked.range().filter(|_| same).map(|range| {
            let start = range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap();
            start.parse::<usize>().unwrap()
        });
        let reply = match start {
            Some(start) if start >= body.len() => {
                Reply::status(416).with("Content-Range", &format!("bytes */{}", body.len()))
            }
            Some(start) => {
                let range = format!("bytes {start}-{}/{}", body.len() - 1, body.len());
                Reply { status: 206, ..Reply::whole(&body[start..]) }.with("Content-Range", &range)
            }
            None => Reply::whole(body),
        };
        reply.with("ETag", etag)
    }

    pub fn redirect(location: &str) -> Reply {
        Reply::status(302).with("Location", location)
    }

    pub fn with(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.into(), value.into()));
        self
    }

    fn send(&self, mut to: TcpStream, head: bool, stop: &AtomicBool) -> std::io::Result<()> {
        let silence = |to: &TcpStream| {
            while !stop.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            to.shutdown(Shutdown::Both)
        };
        if self.mute {
            return silence(&to);
        }
        let mut headers = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", self.status);
        headers += &format!("Content-Length: {}\r\n", self.length.unwrap_or(self.body.len()));
        for (name, value) in &self.headers {
            headers += &format!("{name}: {value}\r\n");
        }
        to.write_all((headers + "\r\n").as_bytes())?;
        if head {
            return Ok(());
        }
        let count = self.cut.or(self.hang).unwrap_or(self.body.len()).min(self.body.len());
        to.write_all(&self.body[..count])?;
        to.flush()?;
        match self.hang {
            Some(_) => silence(&to),
            None => to.shutdown(Shutdown::Both),
        }
    }
}

/// Answers until it goes out of scope.
pub struct Server {
    port: u16,
    log: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (log, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (answer, entries, ended) = (Arc::new(answer), log.clone(), stop.clone());
        let count = Arc::new(AtomicUsize::new(0));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (answer, entries, ended) = (answer.clone(), entries.clone(), ended.clone());
                let count = count.clone();
                std::thread::spawn(move || {
                    let stream = stream.unwrap();
                    let Some(asked) = read(&stream, &entries, &count) else { return };
                    // A client that goes away in the middle is part of the tests.
                    let _ = answer(&asked).send(stream, asked.method == "HEAD", &ended);
                });
            }
        });
        Server { port, log, stop, thread: Some(thread) }
    }

    /// The address of `path`, which starts with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }

    /// "HEAD /path" of the requests so far.
    pub fn paths(&self) -> Vec<String> {
        self.asked().iter().map(|asked| format!("{} {}", asked.method, asked.path)).collect()
    }

    pub fn forget(&self) {
        self.log.lock().unwrap().clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // The listener waits for a connection before it looks.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read(stream: &TcpStream, log: &Mutex<Vec<Asked>>, count: &AtomicUsize) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines().map_while(|line| line.ok());
    let first = lines.next()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_string(), words.next()?.to_string());
    let headers = lines.take_while(|line| !line.is_empty());
    let headers = headers.filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_string(), value.trim().to_string()))
    });
    let headers = headers.collect();
    let asked = Asked { method, path, headers, number: count.fetch_add(1, Ordering::SeqCst) };
    log.lock().unwrap().push(asked.clone());
    Some(asked)
}
