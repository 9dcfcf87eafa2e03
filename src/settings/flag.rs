//! Flags of the commands that are no settings, as far as messages of the library say what to do. The command line's
//! tests look for each of them.

macro_rules! flags {
    ($($name:ident $flag:literal)*) => {
        $(pub(crate) const $name: &str = $flag;)*
        /// All of them.
        pub const ALL: &[&str] = &[$($flag),*];
    };
}

flags! {
    EXPORT_DTYPE "--dtype"
    MERGED "--merged"
    ONNX "--onnx"
    OUTPUT "--output"
    OVERWRITE "--overwrite"
    PEFT "--peft"
    RESUME "--resume"
    RUN "--run"
    SPLIT "--split"
}
