//! `Store` backends.

pub mod sqlite;
