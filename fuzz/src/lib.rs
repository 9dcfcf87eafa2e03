//! What the fuzz targets share. Their bodies are those of the test `fuzz_corpus`.

#[path = "../../tests/fuzz_targets/mod.rs"]
pub mod targets;

/// Lets a panic inside a decoder pass, which the engine catches and turns into an error. Any other panic ends
/// the process, as libFuzzer wants it.
pub fn forgive_guarded_panics() {
    let abort = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !clip_engine::data::decode::decoding() {
            abort(info);
        }
    }));
}
