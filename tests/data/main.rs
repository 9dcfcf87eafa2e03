//! What is read: photos, label files, caches, drawn flowers, words; and the list of unsafe code.

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
