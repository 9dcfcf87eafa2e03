//! What a Python object sees of a command's progress, and how Python stops a command.

use anyhow::Error;
use clip_engine::commands::{error_line, is_wrong_usage};
use clip_engine::progress::Monitor;
use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often Python is asked for signals at the most.
const BETWEEN_CHECKS: Duration = Duration::from_millis(50);

static ENGINE_ERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static SETTING_ERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// The type of errors, `clip_engine.EngineError`.
pub fn engine_error_type(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    let made = ENGINE_ERROR.get_or_try_init(py, || {
        let base = py.get_type::<PyRuntimeError>();
        let doc = c"A command failed; the message is the line that `engine` prints.";
        PyErr::new_type(py, c"clip_engine.EngineError", Some(doc), Some(&base), None)
    });
    Ok(made?.bind(py))
}

/// The type of wrong settings, which is a `ValueError` too.
pub fn setting_error_type(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    let made = SETTING_ERROR.get_or_try_init(py, || {
        let bases = PyTuple::new(py, [engine_error_type(py)?, &py.get_type::<PyValueError>()])?;
        let members = PyDict::new(py);
        members.set_item("__module__", "clip_engine")?;
        members.set_item("__doc__", "A setting out of range, without effect or against another.")?;
        let made = py.get_type::<PyType>().call1(("SettingError", bases, members))?;
        Ok::<_, PyErr>(made.cast_into::<PyType>()?.unbind())
    });
    Ok(made?.bind(py))
}

/// A `clip_engine.SettingError`.
pub fn setting_error(text: String) -> PyErr {
    Python::attach(|py| match setting_error_type(py) {
        Ok(kind) => PyErr::from_type(kind.clone(), text),
        Err(error) => error,
    })
}

/// The exception for an error of the library.
fn exception(py: Python<'_>, error: &Error) -> PyErr {
    let kind = if is_wrong_usage(error) { setting_error_type(py) } else { engine_error_type(py) };
    match kind {
        Ok(kind) => PyErr::from_type(kind.clone(), error_line(error)),
        Err(error) => error,
    }
}

/// Runs a command without the interpreter lock. What a method of `object` raises, and what Python's handlers of signals
/// raise, stops the command cleanly and is raised again when it has ended.
pub fn run<T: Send>(
    py: Python<'_>,
    object: Option<Py<PyAny>>,
    work: impl FnOnce(&Watch) -> anyhow::Result<T> + Send,
) -> PyResult<T> {
    let watch = Watch::new(object);
    let result = py.detach(|| work(&watch));
    let raised = watch.raised.into_inner().unwrap_or_else(PoisonError::into_inner);
    match (raised, result) {
        (Some(raised), Err(error)) if raised.is_instance_of::<PyKeyboardInterrupt>(py) => {
            Err(PyKeyboardInterrupt::new_err(error_line(&error)))
        }
        (Some(raised), _) => Err(raised),
        (None, result) => result.map_err(|error| exception(py, &error)),
    }
}

/// A monitor that passes everything on to a Python object.
pub struct Watch {
    object: Option<Py<PyAny>>,
    stops: AtomicBool,
    raised: Mutex<Option<PyErr>>,
    checked: Mutex<Instant>,
}

impl Watch {
    fn new(object: Option<Py<PyAny>>) -> Self {
        let (raised, checked) = (Mutex::default(), Mutex::new(Instant::now()));
        Watch { object, stops: AtomicBool::new(false), raised, checked }
    }

    fn call(&self, call: impl for<'py> FnOnce(&Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>>) {
        let Some(object) = &self.object else { return };
        self.keep(Python::attach(|py| call(object.bind(py)).map(drop)));
    }

    /// The first error counts.
    fn keep(&self, result: PyResult<()>) {
        if let Err(error) = result {
            self.raised.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            self.stops.store(true, Ordering::Relaxed);
        }
    }

    /// Lets Python's handlers run, if this is the thread that they run on.
    fn check_signals(&self) {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if checked.elapsed() >= BETWEEN_CHECKS {
            *checked = Instant::now();
            drop(checked);
            self.keep(Python::attach(|py| py.check_signals()));
        }
    }
}

impl Monitor for Watch {
    fn begin(&self, task: &str, total: u64) {
        self.call(|object| object.call_method1("begin", (task, total, false)));
    }
    fn begin_bytes(&self, task: &str, total: u64) {
        self.call(|object| object.call_method1("begin", (task, total, true)));
    }
    fn advance(&self, units: u64) {
        self.call(|object| object.call_method1("advance", (units,)));
    }
    fn state(&self, text: &str) {
        self.call(|object| object.call_method1("state", (text,)));
    }
    fn finish(&self) {
        self.call(|object| object.call_method0("finish"));
    }
    fn line(&self, text: &str) {
        self.call(|object| object.call_method1("line", (text,)));
    }
    fn warn(&self, text: &str) {
        self.call(|object| object.call_method1("warn", (text,)));
    }
    fn record(&self, line: &str) {
        self.call(|object| object.call_method1("record", (line,)));
    }
    fn stopped(&self) -> bool {
        self.check_signals();
        self.stops.load(Ordering::Relaxed)
    }
}
