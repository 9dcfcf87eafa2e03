#![no_main]

libfuzzer_sys::fuzz_target!(init: clip_engine_fuzz::forgive_guarded_panics(), |data: &[u8]| {
    clip_engine_fuzz::targets::list(data);
});
