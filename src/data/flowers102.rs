//! flowers102
