//! Boot text: everything that a machine without a disk reads before it has one.
//!
//! iPXE scripts (from Tera templates that an operator may override), Raspberry Pi configuration, the SAN URI, and the checks on them:
//! escaping of every interpolated value, a syntax validator that knows iPXE's commands, and [`ipxe::inspect()`], which determines what a
//! script does by running it on a model of iPXE's interpreter.
//!
//! No I/O except reading override templates from a folder. Invariant: all text that this module returns has passed the validator.

pub mod escape;
pub mod ipxe;
pub mod paths;
pub mod pi;
pub mod san;
pub mod templates;
pub mod url;

pub use san::{Host, SanUri};
pub use templates::{
    BootTemplates, ChainScript, DeclinedScript, FirstScript, MachineScript, Template, Timing, UnknownScript,
};
pub use url::BootUrl;
