//! iPXE's script language: read ([`lines`]), known ([`commands`]), checked ([`syntax`]), run on a model ([`model`]) and told in
//! words of the boot ([`inspect()`]).
//!
//! The reference is the iPXE that Debian ships (1.0.0+git-20190125): what it does not know, a machine of today may not know either.

pub mod commands;
pub mod inspect;
pub mod lines;
pub mod model;
pub mod syntax;

pub use inspect::{ScriptSummary, inspect};
pub use syntax::{Diagnostic, Report, Severity, check};
