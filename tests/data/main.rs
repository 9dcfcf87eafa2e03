//! What is read: photos, label files, caches, drawn flowers, words; and what the documentation says of the sources: the
//! floors, the list of unsafe code, that of the long tests.

mod cache;
mod contributing;
mod dataset;
mod decode;
mod demo_flowers;
mod files;
mod floors;
mod preprocess;
mod security_note;
mod tokenizer;
