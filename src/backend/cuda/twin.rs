//! The host twin.
