//! What is said on standard error, as `--log-level` wants it: bars on a terminal, plain lines elsewhere. Also
//! what Ctrl-C does.

use super::signals;
use super::time_left::Course;
use crate::progress::{Monitor, RunPart};
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, OnceLock, PoisonError};
use std::time::{Duration, Instant};

static STOP: AtomicBool = AtomicBool::new(false);

/// A command may make several monitors.
static LISTENING: Once = Once::new();

/// One for the process, as there is one standard error.
static LEVEL: OnceLock<Level> = OnceLock::new();

/// What is said on standard error; each level says what those before it say, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Level {
    /// Why a command failed.
    Error,
    /// What the user may have to look after.
    Warn,
    /// Progress, and what is found and made.
    Info,
    /// Every training step, and how long each task took.
    Debug,
}

impl Level {
    /// Chooses the level of all monitors to come.
    pub fn choose(self) {
        // There is one command in a process; a second choice would be the same.
        let _ = LEVEL.set(self);
    }

    /// The level of all monitors.
    pub fn chosen() -> Level {
        LEVEL.get().copied().unwrap_or(Level::Info)
    }
}

/// How often a plain line says how far a long task is.
const PLAIN_INTERVAL: Duration = Duration::from_secs(15);

/// The command line's monitor.
pub struct Bars {
    level: Level,
    terminal: bool,
    /// Instant that times are counted from.
    made: Instant,
    task: Mutex<Option<Task>>,
    /// The run that the task is a part of, or the one before was.
    run: Mutex<Run>,
}

#[derive(Default)]
struct Run {
    course: Option<Course>,
    /// The next task is a part of it.
    announced: bool,
    /// When a plain line was written last, in seconds since `made`.
    spoke: f64,
}

struct Task {
    name: String,
    total: u64,
    /// The units are bytes.
    bytes: bool,
    done: u64,
    state: String,
    /// The run that it is a part of.
    course: Option<Course>,
    started: Instant,
    spoke: Instant,
    bar: Option<ProgressBar>,
}

impl Bars {
    /// Makes the monitor and lets Ctrl-C ask for a clean stop; a second Ctrl-C ends the process.
    pub fn new() -> Self {
        let handler = || {
            if STOP.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            if Level::chosen() >= Level::Warn {
                let _ = writeln!(std::io::stderr(), "stopping; Ctrl-C again to quit at once");
            }
        };
        LISTENING.call_once(|| signals::on_stop(handler));
        let (level, terminal) = (Level::chosen(), std::io::stderr().is_terminal());
        Bars { level, terminal, made: Instant::now(), task: Mutex::new(None), run: Mutex::default() }
    }

    /// A line of a level, above the bar if there is one.
    fn say(&self, level: Level, text: &str) {
        if level > self.level {
            return;
        }
        let guard = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        let print = || {
            let _ = writeln!(std::io::stderr(), "{text}");
        };
        match guard.as_ref().and_then(|task| task.bar.as_ref()) {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn start(&self, task: &str, total: u64, bytes: bool) {
        let course = {
            let mut run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut run.announced).then_some(run.course).flatten()
        };
        let bar = (self.terminal && self.level >= Level::Info).then(|| {
            let length = (bytes || total > 0).then_some(total);
            let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr());
            // 80 columns hold each of these.
            let template = match (bytes, course) {
                (true, _) => "{prefix:20!} {bar:10} {bytes:>10}/{total_bytes}  {bytes_per_sec}  {eta} left",
                (false, _) if total == 0 => "{prefix:<14} {pos:>6}  {elapsed:>4}  {wide_msg}",
                (false, None) => "{prefix:<14} {bar:10} {pos:>6}/{len}  {eta:>4} left  {wide_msg}",
                (false, Some(_)) => "{prefix:<11} {bar:6} {pos:>5}/{len}  {wide_msg}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar.set_prefix(task.to_string());
            bar
        });
        let now = Instant::now();
        let task = Task {
            name: task.to_string(),
            total,
            bytes,
            done: 0,
            state: String::new(),
            course,
            started: now,
            spoke: now,
            bar,
        };
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    /// Whether a plain line is due: of a long task, or of a long run whose parts may be short.
    fn is_time_to_speak(&self, task: &mut Task, now: f64) -> bool {
        let mut run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        let silence = match task.course {
            Some(_) => Duration::from_secs_f64(now - run.spoke),
            None => task.spoke.elapsed(),
        };
        let due = silence >= PLAIN_INTERVAL;
        if due {
            (task.spoke, run.spoke) = (Instant::now(), now);
        }
        due
    }

    fn with_task(&self, action: impl FnOnce(&mut Task)) {
        if let Some(task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            action(task);
        }
    }
}

impl Task {
    /// How long the whole of it takes at most, where it is a part of a run.
    fn left_of_run(&self, now: f64) -> Option<String> {
        self.course.and_then(|course| course.left(self.done, self.total, now))
    }

    fn show_state(&self, now: f64) {
        let Some(bar) = &self.bar else { return };
        match self.left_of_run(now) {
            Some(left) => bar.set_message(format!("{left}  {}", self.state)),
            None => bar.set_message(self.state.clone()),
        }
    }

    fn plain(&self, line: &str) {
        let _ = writeln!(std::io::stderr(), "{}: {line}", self.name);
    }
}

impl Monitor for Bars {
    fn part(&self, part: RunPart) {
        let now = self.made.elapsed().as_secs_f64();
        let mut run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        run.course = Some(Course::begin(run.course, part, now));
        run.announced = true;
    }

    fn begin(&self, task: &str, total: u64) {
        self.start(task, total, false);
    }

    fn begin_bytes(&self, task: &str, total: u64) {
        self.start(task, total, true);
    }

    fn advance(&self, units: u64) {
        let now = self.made.elapsed().as_secs_f64();
        self.with_task(|task| {
            task.done += units;
            if let Some(bar) = &task.bar {
                bar.inc(units);
                task.show_state(now);
            } else if self.level >= Level::Info && self.is_time_to_speak(task, now) {
                let elapsed = task.started.elapsed().as_secs_f64();
                let left = elapsed / task.done.max(1) as f64 * task.total.saturating_sub(task.done) as f64;
                let left = task.left_of_run(now).unwrap_or_else(|| format!("{left:.0} s left"));
                let amount =
                    |units| if task.bytes { HumanBytes(units).to_string() } else { units.to_string() };
                let (done, total) = (amount(task.done), amount(task.total));
                let course = match task.total {
                    0 => format!("{done}, {elapsed:.0} s"),
                    _ => format!("{done}/{total}, {left}"),
                };
                task.plain(&format!("{course}  {}", task.state));
            }
        });
    }

    fn state(&self, text: &str) {
        let now = self.made.elapsed().as_secs_f64();
        self.with_task(|task| {
            task.state = text.to_string();
            task.show_state(now);
        });
    }

    fn finish(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(task) = task else { return };
        if let Some(bar) = task.bar {
            bar.finish_and_clear();
        }
        self.debug(&format!("{}: {} in {:.3} s", task.name, task.done, task.started.elapsed().as_secs_f64()));
    }

    fn line(&self, text: &str) {
        self.say(Level::Info, text);
    }

    fn warn(&self, text: &str) {
        self.say(Level::Warn, &format!("warning: {text}"));
    }

    fn debug(&self, text: &str) {
        self.say(Level::Debug, &format!("debug: {text}"));
    }

    fn stopped(&self) -> bool {
        STOP.load(Ordering::SeqCst)
    }
}
