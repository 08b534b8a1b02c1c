//! `TargetBackend` backends.

pub mod builtin;
