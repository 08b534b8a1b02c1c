//! iPXE's script language: parsing ([`lines`]), the list of commands ([`commands`]), validation ([`syntax`]), a model of the interpreter
//! ([`model`]) and a summary of what a script does ([`inspect()`]).
//!
//! The reference is the iPXE that Debian ships (1.0.0+git-20190125): a machine of today may not support more than it does.

pub mod commands;
pub mod inspect;
pub mod lines;
pub mod model;
pub mod syntax;

pub use inspect::{ScriptSummary, inspect};
pub use syntax::{Diagnostic, Report, Severity, check};
